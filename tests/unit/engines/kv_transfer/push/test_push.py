"""Pushes between two nodes of one process."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.engines.kv_transfer import PushLimits, ReceiveLimits
from llmserve.engines.kv_transfer.protocol import EndPush, RequestRefusal
from llmserve.engines.kv_transfer.push.fence import StopLimits
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.tcp import TcpTransport

Make = Callable[..., Any]
Wait = Callable[[Callable[[], bool]], None]
REST = [3, *range(4, 16)]
QUICK = ReceiveLimits(poll_seconds=0.02, stop=StopLimits(remote_seconds=0.5))


def test_layers_are_written_while_prefill_computes(
    make_side: Make, push: Make, result_of: Make, wait_until: Wait
) -> None:
    prefill, decode = make_side(1), make_side(2)
    rest = decode.kv.blocks(REST)
    request = push(prefill, decode)
    request.reserve()
    request.announce()
    request.compute(0, 2, layers=[0])
    first, second = decode.kv.layers[0].reshape(16, -1), prefill.kv.layers[0].reshape(16, -1)
    wait_until(lambda: bool((first[[1, 2]] == second[[4, 5]]).all()))
    assert not request.arrived, "and nothing else of it yet"
    request.compute(0, 2, layers=[1, 2])
    request.compute(2, 3)
    wait_until(lambda: bool(request.arrived))
    assert request.results() == [], "prefill has not finished"
    request.finish()
    result = result_of(request)
    assert (result.ok, result.transport, result.tokens) == (True, "tcp", (77,))
    assert result.bytes == 3 * (4096 + 8192 + 100)
    assert request.arrived
    assert all((a == b).all() for a, b in zip(rest, decode.kv.blocks(REST), strict=True))
    wait_until(lambda: bool(request.is_freed))
    assert decode.node.counters.transferred_bytes == result.bytes
    assert decode.node.receiver.active_count == 0


def test_a_reservation_that_comes_late_gets_all_that_was_computed(
    make_side: Make, push: Make, result_of: Make
) -> None:
    request = push(make_side(1), make_side(2))
    request.announce()
    request.compute(0, 3)
    request.finish()
    request.reserve()
    assert result_of(request).ok
    assert request.arrived


def test_blocks_from_prefills_own_cache_are_written_too(make_side: Make, push: Make, result_of: Make) -> None:
    request = push(make_side(1), make_side(2))
    request.reserve()
    request.announce()
    request.compute(2, 3)  # two blocks are not computed at all
    request.finish()
    assert result_of(request).ok
    assert request.arrived


def test_what_decode_has_is_not_written(make_side: Make, push: Make, result_of: Make) -> None:
    prefill, decode = make_side(1), make_side(2)
    untouched = decode.kv.blocks([1, 2])
    request = push(prefill, decode, target=(0,), first=2)
    request.reserve()
    request.announce()
    request.compute(0, 3)
    request.finish()
    result = result_of(request)
    assert (result.ok, result.bytes) == (True, 4096 + 8192 + 100)
    assert request.arrived
    assert all((a == b).all() for a, b in zip(untouched, decode.kv.blocks([1, 2]), strict=True))


def test_a_layer_that_was_never_told_of_is_final_when_prefill_finishes(
    make_side: Make, push: Make, result_of: Make
) -> None:
    """Hooks that a compiled forward pass leaves out cost the overlap, nothing else."""
    request = push(make_side(1), make_side(2))
    request.reserve()
    request.announce()
    request.compute(0, 3, layers=[1])
    request.finish()
    assert result_of(request).ok
    assert request.arrived


def test_decode_that_draws_the_first_token_itself_is_not_given_one(
    make_side: Make, push: Make, result_of: Make
) -> None:
    request = push(make_side(1), make_side(2), continues=False)
    request.reserve()
    request.announce()
    request.finish()
    result = result_of(request)
    assert (result.ok, result.tokens) == (True, ())


def test_a_prompt_that_the_engine_computes_again_is_written_again(
    make_side: Make, push: Make, result_of: Make, wait_until: Wait
) -> None:
    prefill, decode = make_side(1), make_side(2)
    request = push(prefill, decode)
    request.reserve()
    request.announce()
    request.compute(0, 3)
    wait_until(lambda: bool(request.arrived))
    request.source = (10, 11, 12)  # preempted: it comes back in other blocks
    request.compute(0, 3, restarted=True)
    request.finish()
    assert result_of(request).ok
    assert request.arrived


def test_many_at_once_both_ways(make_side: Make, push: Make, result_of: Make) -> None:
    left, right = make_side(1), make_side(2)
    requests = []
    for i in range(8):
        requests.append(push(left, right, source=(i,), target=(8 + i,), name=f"l{i}"))
        requests.append(push(right, left, source=(i,), target=(8 + i,), name=f"r{i}"))
    for request in requests:
        request.reserve()
    for request in requests:
        request.announce()
        request.finish()
    found: dict[str, Any] = {}
    while len(found) < len(requests):
        for side in (left, right):
            found.update({result.request_id: result for result in side.node.receiver.take_finished()})
    assert all(result.ok for result in found.values())
    assert all(request.arrived for request in requests)


@pytest.mark.parametrize("verify", ["off", "sampled", "always"])
def test_what_arrives_is_verified(make_side: Make, push: Make, result_of: Make, verify: Any) -> None:
    policy = TransferPolicy(verify=verify)
    request = push(make_side(1, policy=policy), make_side(2, policy=policy))
    request.reserve()
    request.announce()
    request.finish()
    assert result_of(request).ok


class Scrambling(TcpTransport):
    """Writes other bytes than it should: what it sends of the first layer comes from a block further on."""

    def write(self, peer: Any, batch: Any) -> Any:
        offsets = batch.local.offsets.copy()
        offsets[0] += 4096
        local = type(batch.local)(batch.local.regions, offsets, batch.local.lengths)
        return super().write(peer, type(batch)(local, batch.remote))


def test_other_bytes_than_were_sent_are_noticed(make_side: Make, push: Make, result_of: Make) -> None:
    prefill = make_side(1, Scrambling(), policy=TransferPolicy(verify="always"))
    request = push(prefill, make_side(2))
    request.reserve()
    request.announce()
    request.finish()
    result = result_of(request)
    assert (result.ok, result.transport) == (True, "tcp"), "pulled"
    assert result.fallbacks == ("push: tcp: other bytes arrived than were sent: the digests differ",)
    assert request.arrived


# -- falling back


def test_writes_go_over_the_next_transport(make_side: Make, gated: Make, push: Make, result_of: Make) -> None:
    prefill = make_side(1, near := gated(mode="fail"), TcpTransport())
    decode = make_side(2, gated(), TcpTransport())
    request = push(prefill, decode)
    request.reserve()
    request.announce()
    request.compute(0, 2)
    request.finish()
    result = result_of(request)
    assert (result.ok, result.transport, result.fallbacks) == (True, "tcp", ())
    assert near.writes == 1
    assert prefill.node.counters.by_transport["gated"].failures == 1
    assert request.arrived


def test_when_writes_fail_decode_pulls(
    make_side: Make, gated: Make, push: Make, result_of: Make, wait_until: Wait
) -> None:
    prefill = make_side(1, gated(mode="fail"))
    decode = make_side(2, pulling := gated())
    pulling.gate.set()
    request = push(prefill, decode)
    request.reserve()
    request.announce()
    request.compute(0, 2)
    wait_until(lambda: prefill.node.counters.transfer_failures == 1)
    assert request.results() == [], "pull parameters come when prefill has finished"
    request.finish()
    result = result_of(request)
    assert (result.ok, result.transport, result.tokens) == (True, "gated", (77,))
    assert result.fallbacks == ("push: gated: failed by the test",)
    assert request.arrived
    wait_until(lambda: bool(request.is_freed))


def test_when_the_pull_fails_too_the_token_is_still_known(
    make_side: Make, gated: Make, push: Make, result_of: Make, wait_until: Wait
) -> None:
    prefill, decode = make_side(1, gated(mode="fail")), make_side(2, gated(mode="refuse"))
    request = push(prefill, decode)
    request.reserve()
    request.announce()
    request.finish()
    result = result_of(request)
    assert not result.ok
    assert result.reason == "gated: refused by the test"
    assert result.tokens == (77,)
    wait_until(lambda: bool(request.is_freed))
    assert decode.node.counters.transfer_failures == 2, "the transport, and the hand-over"


def test_blocks_reserved_for_another_prompt_are_not_filled(
    make_side: Make, push: Make, result_of: Make
) -> None:
    request = push(make_side(1), make_side(2), target=(1, 2))
    request.reserve()
    request.announce()
    request.finish()
    result = result_of(request)
    assert (result.ok, result.reason) == (False, "2 local blocks for 3 remote ones")
    assert result.fallbacks == ("push: decode has reserved 2 blocks for a prompt of 3",)


def test_a_lease_that_ended_during_the_push_spoils_it(
    make_side: Make, gated: Make, push: Make, result_of: Make, wait_until: Wait, clock: VirtualClock
) -> None:
    prefill = make_side(1, near := gated(), clock=clock)
    request = push(prefill, make_side(2, gated()))
    request.reserve()
    request.announce()
    request.finish()
    assert near.started.wait(30)
    clock.advance(31)
    assert prefill.node.server.take_ended() == {"t1"}
    near.gate.set()
    result = result_of(request)
    assert not result.ok
    assert "begin: ended" in result.reason
    assert "lease ended before all was written" in result.fallbacks[0]


def test_a_reservation_that_comes_after_the_lease_has_ended_gets_nothing(
    make_side: Make, push: Make, result_of: Make, clock: VirtualClock
) -> None:
    """As when the leg waits for its adapter. The prompt is computed again."""
    prefill = make_side(1, clock=clock)
    request = push(prefill, make_side(2, receive_limits=QUICK))
    request.announce()
    request.compute(0, 3)
    request.finish()
    clock.advance(31)
    assert prefill.node.server.take_ended() == {"t1"}
    request.reserve()
    result = result_of(request)
    assert not result.ok
    assert "begin: ended" in result.reason


def test_a_prefill_that_is_aborted_ends_the_push(make_side: Make, push: Make, result_of: Make) -> None:
    request = push(make_side(1), make_side(2, receive_limits=QUICK))
    request.reserve()
    request.announce()
    request.compute(0, 2)
    request.drop()
    result = result_of(request)
    assert (result.ok, result.reason) == (False, "push: prefill was aborted")


def test_a_prefill_that_never_hears_of_it_is_given_up(make_side: Make, push: Make, result_of: Make) -> None:
    prefill = make_side(1, push_limits=PushLimits(patience_seconds=0.1))
    request = push(prefill, make_side(2, receive_limits=QUICK))
    request.reserve()
    result = result_of(request)
    assert result.reason == "the push is unknown to prefill"


def test_a_push_has_a_deadline(make_side: Make, push: Make, result_of: Make) -> None:
    limits = ReceiveLimits(poll_seconds=0.02, total_seconds=0.1)
    request = push(make_side(1), make_side(2, receive_limits=limits))
    request.reserve()
    request.announce()
    assert result_of(request).reason == "nothing was pushed within 0.1 s"


def test_a_prefill_of_another_epoch_is_not_waited_for(make_side: Make, push: Make, result_of: Make) -> None:
    request = push(make_side(1, epoch=6), make_side(2))
    request.reserve()
    assert "is at epoch 6" in result_of(request).reason


def test_decode_finds_out_by_asking_when_it_is_not_told(
    make_side: Make, push: Make, result_of: Make, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when prefill cannot open a connection any more. Decode releases the lease then."""
    request = push(make_side(1), make_side(2, receive_limits=QUICK))
    server = request.decode.node.server
    monkeypatch.setitem(server._handlers, EndPush, _refuse)
    request.reserve()
    request.announce()
    request.finish()
    result = result_of(request)
    assert (result.ok, result.tokens) == (True, (77,))
    assert request.arrived
    wait_until(lambda: bool(request.is_freed))


def _refuse(connection: int, request: EndPush) -> RequestRefusal:
    return RequestRefusal("refused by the test")


def test_a_request_that_waits_for_blocks_keeps_the_lease_alive(
    make_side: Make, push: Make, result_of: Make, wait_until: Wait, clock: VirtualClock
) -> None:
    request = push(make_side(1, clock=clock), make_side(2, receive_limits=QUICK))
    request.decode.node.receiver.expect(request.push_params)
    request.announce()
    request.finish()
    for _ in range(4):
        clock.advance(20)
        renewed = request.prefill.node.server._table.counters.renewed
        wait_until(partial(_is_renewed, request.prefill, renewed + 1))
    request.reserve()
    assert result_of(request).ok


def _is_renewed(side: Any, times: int) -> bool:
    renewed: int = side.node.server._table.counters.renewed
    return renewed > times


def test_a_request_that_is_aborted_while_it_waits_gives_the_lease_back(
    make_side: Make, push: Make, wait_until: Wait
) -> None:
    request = push(make_side(1), make_side(2))
    request.decode.node.receiver.expect(request.push_params)
    request.announce()
    request.decode.node.receiver.forget(request.push_params)
    request.finish()
    wait_until(lambda: bool(request.is_freed))


def test_nothing_is_logged_as_an_error(
    make_side: Make, gated: Make, push: Make, result_of: Make, caplog: pytest.LogCaptureFixture
) -> None:
    prefill, decode = make_side(1, gated(mode="fail")), make_side(2, gated(mode="refuse"))
    with caplog.at_level(logging.INFO):
        request = push(prefill, decode)
        request.reserve()
        request.announce()
        request.finish()
        assert not result_of(request).ok
        prefill.node.close()
        decode.node.close()
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
