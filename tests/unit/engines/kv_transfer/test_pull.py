import dataclasses
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import TransferError
from llmserve.core.ids import LeaseId, RequestId
from llmserve.core.kv_params import BlockTable
from llmserve.core.lease_table import LeaseAnswer
from llmserve.engines.kv_transfer import PullLimits
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.tcp import TcpTransport

Make = Callable[..., Any]
Wait = Callable[[Callable[[], bool]], None]
REMOTE = [4, 5, 9]
LOCAL = [1, 2, 0]
REST = [i for i in range(16) if i not in LOCAL]


def test_a_pull_copies_the_blocks_and_nothing_else(make_side: Make) -> None:
    owner, reader = make_side(1), make_side(2)
    rest = reader.kv.blocks(REST)
    pull_params = owner.grant("p1", REMOTE)
    assert owner.node.server.leased_count == 1
    reader.pull(pull_params, LOCAL)
    result = reader.result()
    assert (result.ok, result.transport, result.reason) == (True, "tcp", "")
    assert result.bytes == 3 * (4096 + 8192 + 100)
    assert reader.kv.holds(LOCAL, owner.kv, REMOTE)
    assert all((a == b).all() for a, b in zip(rest, reader.kv.blocks(REST), strict=True))
    assert owner.node.server.take_ended() == {"p1"}
    assert owner.node.server.leased_count == 0
    assert reader.node.counters.transferred_bytes == result.bytes
    assert reader.node.server.status().last_transport == "tcp"


def test_both_ways_and_many_at_once(make_side: Make) -> None:
    left, right = make_side(1), make_side(2)
    for i in range(8):
        right.pull(left.grant(f"l{i}", [i]), [8 + i], f"r{i}")
        left.pull(right.grant(f"r{i}", [i]), [8 + i], f"l{i}")
    for side, other in ((left, right), (right, left)):
        results = side.results(8)
        assert [result.ok for result in results] == [True] * 8
        assert side.kv.holds(range(8, 16), other.kv, range(8))
        assert len(other.node.server.take_ended()) == 8
        assert side.node.client.active_count == 0


def test_a_lease_that_expires_during_the_read_spoils_it(
    make_side: Make, gated: Make, clock: VirtualClock
) -> None:
    owner = make_side(1, gated(), clock=clock)
    reader = make_side(2, near := gated())
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    assert near.started.wait(30)
    clock.advance(31)
    assert owner.node.server.take_ended() == {"p1"}
    near.gate.set()
    result = reader.result()
    assert not result.ok
    assert "release: ended" in result.reason
    assert result.bytes == 0


def test_a_lease_that_has_ended_is_not_read(make_side: Make, gated: Make, clock: VirtualClock) -> None:
    owner = make_side(1, gated(), clock=clock)
    reader = make_side(2, near := gated())
    pull_params = owner.grant("p1", REMOTE)
    clock.advance(30)
    reader.pull(pull_params, LOCAL)
    result = reader.result()
    assert "begin: ended" in result.reason
    assert not near.started.is_set()


def test_a_ticket_of_another_epoch_is_not_read(make_side: Make) -> None:
    owner, reader = make_side(1), make_side(2)
    good = owner.grant("p1", REMOTE)
    for epoch in (4, 6):
        reader.pull(dataclasses.replace(good, epoch=epoch), LOCAL)
        result = reader.result()
        assert not result.ok
        assert f"at epoch 5, the request at {epoch}" in result.reason
    assert owner.node.server.leased_count == 1
    reader.pull(good, LOCAL)
    assert reader.result().ok


def test_a_grant_may_come_after_its_ticket(
    make_side: Make, wait_until: Wait, answers_of: Callable[..., list[LeaseAnswer]]
) -> None:
    owner, reader = make_side(1), make_side(2)
    answers = answers_of(owner, "renew")
    early = dataclasses.replace(owner.grant("p0", REMOTE), lease_id=LeaseId("later"))
    reader.pull(early, LOCAL)
    wait_until(lambda: LeaseAnswer.UNKNOWN in answers)
    owner.node.server.grant(RequestId("p1"), REMOTE, LeaseId("later"))
    assert reader.result().ok


def test_a_lease_that_never_was_is_given_up(make_side: Make) -> None:
    owner, reader = make_side(1), make_side(2, limits=PullLimits(grant_seconds=0.05))
    reader.pull(dataclasses.replace(owner.grant("p0", REMOTE), lease_id=LeaseId("never")), LOCAL)
    assert "begin: unknown" in reader.result().reason


def test_caches_that_do_not_fit_are_refused_with_the_reason(make_side: Make) -> None:
    owner, reader = make_side(1), make_side(2)
    geometry = dataclasses.replace(reader.kv.layout.geometry, kv_dtype="fp8")
    other = make_side(3, layout=dataclasses.replace(reader.kv.layout, geometry=geometry))
    other.pull(owner.grant("p1", REMOTE), LOCAL)
    assert "kv_dtype differs: 'fp8' there, 'bfloat16' here" in other.result().reason


@pytest.mark.parametrize("mode", ["refuse", "fail"])
def test_the_next_transport_is_tried(make_side: Make, gated: Make, mode: str) -> None:
    owner = make_side(1, gated(), TcpTransport())
    reader = make_side(2, near := gated(mode=mode), TcpTransport())
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    result = reader.result()
    assert (result.ok, result.transport) == (True, "tcp")
    assert [text.split(":")[0] for text in result.fallbacks] == ["gated"]
    assert "by the test" in result.fallbacks[0]
    assert reader.kv.holds(LOCAL, owner.kv, REMOTE)
    assert reader.node.counters.by_transport["gated"].failures == 1
    near.started.clear()  # it is not the first choice any more
    reader.pull(owner.grant("p2", REMOTE), LOCAL)
    assert reader.result().fallbacks == ()
    assert not near.started.is_set()


def test_when_no_transport_works_the_lease_is_given_back(
    make_side: Make, gated: Make, wait_until: Wait
) -> None:
    owner = make_side(1, gated(), gated(name="second"))
    reader = make_side(2, gated(mode="fail"), gated(name="second", mode="refuse"))
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    result = reader.result()
    assert result.reason == "gated: failed by the test; second: refused by the test"
    wait_until(lambda: owner.node.server.take_ended() == {"p1"})
    assert reader.node.counters.transfer_failures == 3


def test_no_transport_in_common(make_side: Make, gated: Make) -> None:
    owner, reader = make_side(1, gated()), make_side(2)
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    assert "no transport in common" in reader.result().reason


def test_a_slow_transport_is_left_for_the_next(make_side: Make, gated: Make) -> None:
    owner = make_side(1, gated(), TcpTransport())
    policy = TransferPolicy(attempt_seconds=0.5)  # enough for tcp on a busy machine
    reader = make_side(2, near := gated(stubborn=2), TcpTransport(), policy=policy)
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    result = reader.result()
    assert (result.ok, result.transport) == (True, "tcp")
    assert result.fallbacks == ("gated: too slow: 37164 bytes not done within 0.5 s",)
    assert (near.stubborn, near.cancelled) == (0, 1)


def test_a_pull_has_a_deadline(make_side: Make, gated: Make) -> None:
    owner = make_side(1, gated())
    reader = make_side(2, near := gated(), limits=PullLimits(total_seconds=0.5))
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    assert reader.result().reason == "not done within 0.5 s"
    assert near.cancelled == 1


def test_a_cancelled_pull_ends_when_memory_is_left_alone(
    make_side: Make, gated: Make, wait_until: Wait
) -> None:
    owner = make_side(1, gated())
    reader = make_side(2, near := gated(stubborn=3))
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    assert near.started.wait(30)
    reader.node.client.cancel(RequestId("d1"))
    wait_until(lambda: near.stubborn < 3)
    reader.node.client.cancel(RequestId("d1"))  # once more, while it settles
    if near.stubborn:
        assert reader.node.client.take_finished() == []
    result = reader.result()
    assert result.reason == "cancelled"
    assert (near.stubborn, near.cancelled) == (0, 1)
    wait_until(lambda: owner.node.server.take_ended() == {"p1"})


def test_cancelling_the_unknown_is_ignored(make_side: Make) -> None:
    side = make_side(1)
    side.node.client.cancel(RequestId("nobody"))
    assert side.node.client.take_finished() == []


def test_an_owner_that_goes_away_fails_the_pull_at_once(make_side: Make, gated: Make) -> None:
    owner = make_side(1, gated())
    reader = make_side(2, near := gated())
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    assert near.started.wait(30)
    begun = time.monotonic()
    owner.node.close()
    result = reader.result()
    assert not result.ok
    assert time.monotonic() - begun < 20
    assert near.cancelled == 1
    assert near.connected == 0


def test_a_restarted_owner_is_connected_to_again(make_side: Make) -> None:
    owner, reader = make_side(1), make_side(2)
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    assert reader.result().ok
    owner.node.close()
    again = make_side(3, epoch=6)
    pull_params = again.grant("p2", REMOTE, epoch=6)
    reader.pull(pull_params, LOCAL)
    assert reader.result().ok
    assert reader.kv.holds(LOCAL, again.kv, REMOTE)


def test_blocks_outside_the_cache_are_refused(make_side: Make) -> None:
    owner, reader = make_side(1), make_side(2)
    for local, remote in (([16], [0]), ([0], [16])):
        reader.pull(owner.grant(f"p{local}", remote), local)
        result = reader.result()
        assert not result.ok
        assert "outside registered memory" in result.reason


def test_a_ticket_that_does_not_describe_its_owner_is_refused(make_side: Make) -> None:
    owner, reader = make_side(1), make_side(2)
    pull_params = owner.grant("p1", REMOTE)
    two_ranks = dataclasses.replace(pull_params, endpoints=pull_params.endpoints * 2)
    larger_blocks = dataclasses.replace(
        pull_params, block_size_tokens=6, blocks=BlockTable(pull_params.blocks.block_ids[:2])
    )
    for wrong in (two_ranks, larger_blocks):
        reader.pull(wrong, LOCAL)
        assert "is not what the request says" in reader.result().reason


def test_one_pull_for_a_request_at_a_time(make_side: Make, gated: Make) -> None:
    owner = make_side(1, gated())
    reader = make_side(2, near := gated())
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    with pytest.raises(TransferError, match="being pulled already"):
        reader.pull(owner.grant("p2", REMOTE), LOCAL)
    near.gate.set()
    assert reader.result().ok
    reader.pull(owner.grant("p3", REMOTE), LOCAL)
    assert reader.result().ok


def test_close_ends_pulls_with_a_result(make_side: Make, gated: Make) -> None:
    owner = make_side(1, gated())
    reader = make_side(2, near := gated())
    reader.pull(owner.grant("p1", REMOTE), LOCAL)
    assert near.started.wait(30)
    reader.node.close()
    (result,) = reader.node.client.take_finished()
    assert result.reason == "cancelled"
    with pytest.raises(TransferError, match="closed"):
        reader.pull(owner.grant("p2", REMOTE), LOCAL)
    assert reader.node.client.active_count == 0


def test_memory_is_read_only_for_the_pulled_blocks_of_a_json_ticket(make_side: Make) -> None:
    """As it travels: through JSON."""
    owner, reader = make_side(1), make_side(2)
    pull_params = owner.grant("p1", REMOTE)
    again = type(pull_params).from_params(json.loads(json.dumps(pull_params.to_params())))
    reader.pull(again, LOCAL)
    assert reader.result().ok


def test_nothing_is_logged_as_an_error(
    make_side: Make, gated: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Failures that are handled are no errors of the program."""
    owner = make_side(1, gated(), TcpTransport())
    reader = make_side(2, gated(mode="fail"), TcpTransport())
    with caplog.at_level(logging.INFO):
        reader.pull(owner.grant("p1", REMOTE), LOCAL)
        assert reader.result().ok
        owner.node.close()
        reader.node.close()
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
