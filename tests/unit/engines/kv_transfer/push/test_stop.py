"""Pushes that are given up: no write lands in blocks that may have another owner by then."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llmserve.core.errors import TransferError
from llmserve.core.ids import RequestId
from llmserve.engines.kv_transfer import ReceiveLimits
from llmserve.engines.kv_transfer.push.fence import StopLimits
from llmserve.transfer.tcp import TcpTransport

Make = Callable[..., Any]
Wait = Callable[[Callable[[], bool]], None]
REMOTE_SECONDS = 0.1
QUICK = ReceiveLimits(poll_seconds=0.02, stop=StopLimits(remote_seconds=REMOTE_SECONDS))
ALL = range(16)


@pytest.fixture
def goes_on(make_side: Make) -> Iterator[threading.Event]:
    """What a side waits for that behaves as if its process had been suspended. It is set before the sides
    are closed."""
    event = threading.Event()
    yield event
    event.set()


def unchanged(side: Any, before: list[Any]) -> bool:
    """All blocks still hold what they did."""
    return all((a == b).all() for a, b in zip(before, side.kv.blocks(ALL), strict=True))


def test_before_the_first_write_blocks_are_free_at_once(
    make_side: Make, push: Make, result_of: Make, wait_until: Wait
) -> None:
    request = push(make_side(1), decode := make_side(2))
    before = decode.kv.blocks(ALL)
    request.reserve()
    request.cancel()
    assert result_of(request).reason == "cancelled"
    request.announce()
    request.compute(0, 3)
    request.finish()
    wait_until(lambda: bool(request.is_freed))
    assert unchanged(decode, before)


def test_a_write_in_hand_is_waited_for(
    make_side: Make, gated: Make, push: Make, result_of: Make, wait_until: Wait
) -> None:
    prefill = make_side(1, near := gated())
    decode = make_side(2, far := gated(), receive_limits=ReceiveLimits(stop=StopLimits(remote_seconds=5)))
    request = push(prefill, decode)
    request.reserve()
    request.announce()
    request.compute(0, 2, layers=[0])
    assert near.started.wait(30)
    request.cancel()
    request.cancel()
    time.sleep(0.05)  # nothing may come of it in this time
    assert request.results() == []
    near.gate.set()
    assert result_of(request).reason == "cancelled"
    before = decode.kv.blocks(ALL)
    request.compute(0, 3)
    request.finish()
    wait_until(lambda: bool(request.is_freed))
    assert unchanged(decode, before)
    assert (near.writes, far.generation) == (1, 1), "and nothing had to be fenced"


def test_after_a_write_that_failed_its_late_bytes_do_not_arrive(
    make_side: Make, gated: Make, push: Make, result_of: Make
) -> None:
    prefill = make_side(1, near := gated(mode="fail"))
    request = push(prefill, decode := make_side(2, pulling := gated()))
    pulling.gate.set()
    request.reserve()
    request.announce()
    request.finish()
    assert result_of(request).ok, "pulled, after the fence"
    for block in decode.kv.layers:
        block[:] = 0  # the blocks have another owner now
    assert near.late
    assert near.land() == 0
    assert not any(block.any() for block in decode.kv.layers)


def test_bytes_that_may_still_arrive_are_what_the_fence_is_for(
    make_side: Make, gated: Make, push: Make, wait_until: Wait
) -> None:
    """The other side of the test above: without a fence they would land."""
    prefill = make_side(1, near := gated(mode="fail"))
    request = push(prefill, make_side(2, gated()))
    request.reserve()
    request.announce()
    request.compute(0, 3)
    wait_until(lambda: bool(near.late))
    assert near.land() == 1


def test_a_prefill_that_is_gone_is_fenced(make_side: Make, gated: Make, push: Make, result_of: Make) -> None:
    prefill = make_side(1, near := gated())
    decode = make_side(2, far := gated(), receive_limits=QUICK)
    before = decode.kv.blocks(ALL)
    request = push(prefill, decode)
    request.reserve()
    request.announce()
    request.compute(0, 2)
    assert near.started.wait(30)
    prefill.node.server.close()  # nobody listens there any more
    prefill.node.client.close()
    assert not result_of(request).ok
    assert far.generation == 2
    near.gate.set()
    assert near.land() == 0
    assert unchanged(decode, before)


def test_a_prefill_that_does_not_answer_is_waited_for(
    make_side: Make, gated: Make, push: Make, result_of: Make, goes_on: threading.Event
) -> None:
    """It may have the kernel write for it, once it goes on: no fence keeps that out on one host."""
    prefill = make_side(1, near := gated())
    decode = make_side(2, far := gated(), receive_limits=QUICK)
    request = push(prefill, decode)
    request.reserve()
    request.announce()
    request.compute(0, 2)
    assert near.started.wait(30)
    prefill.node._engine.post(goes_on.wait)
    near.gate.set()
    request.cancel()
    time.sleep(2 * REMOTE_SECONDS)  # nothing may come of it in this time
    assert request.results() == []
    goes_on.set()
    assert result_of(request).reason == "cancelled"
    assert far.generation == 1, "it has answered"


def test_a_prefill_that_stays_suspended_is_given_up_with_its_blocks(
    make_side: Make,
    gated: Make,
    push: Make,
    wait_until: Wait,
    caplog: pytest.LogCaptureFixture,
    goes_on: threading.Event,
) -> None:
    limits = ReceiveLimits(poll_seconds=0.02, stop=StopLimits(local_seconds=0.1))
    prefill = make_side(1, near := gated())
    decode = make_side(2, far := gated(), receive_limits=limits)
    request = push(prefill, decode)
    request.reserve()
    request.announce()
    request.compute(0, 2)
    assert near.started.wait(30)
    prefill.node._engine.post(goes_on.wait)
    request.cancel()
    wait_until(lambda: "lost until this worker restarts" in caplog.text)
    assert request.results() == [], "nobody may use the blocks"
    assert decode.node.receiver.active_count == 1
    assert far.generation == 1, "a fence would not keep it out"
    near.gate.set()


def test_a_prefill_on_another_host_that_does_not_answer_is_fenced(
    make_side: Make,
    gated: Make,
    push: Make,
    result_of: Make,
    wait_until: Wait,
    goes_on: threading.Event,
) -> None:
    prefill = make_side(1, near := gated())
    decode = make_side(2, far := gated(), receive_limits=QUICK)
    before = decode.kv.blocks(ALL)
    request = push(prefill, decode, host="localhost")
    request.reserve()
    request.announce()
    request.compute(0, 2)
    assert near.started.wait(30)
    prefill.node._engine.post(goes_on.wait)
    request.cancel()
    assert result_of(request).reason == "cancelled"
    assert far.generation == 2
    goes_on.set()
    near.gate.set()
    request.finish()
    wait_until(lambda: not prefill.node._engine._flights)
    assert unchanged(decode, before)


def test_after_a_fence_everybody_connects_again(
    make_side: Make, gated: Make, push: Make, result_of: Make
) -> None:
    prefill = make_side(1, gated(mode="fail"), TcpTransport())
    decode = make_side(2, far := gated(), TcpTransport())
    for turn in range(3):
        request = push(prefill, decode, name=f"t{turn}", source=(turn,), target=(15 - turn,))
        request.reserve()
        request.announce()
        request.finish()
        assert result_of(request).ok
        assert request.arrived
    far.gate.set()
    decode.pull(prefill.grant("p", [4]), [3])
    assert decode.result().ok
    assert far.generation == 1, "what failed was written again over tcp: all has ended well"


def test_a_pull_under_way_survives_the_fence_of_another_push(
    make_side: Make, gated: Make, push: Make, result_of: Make, wait_until: Wait
) -> None:
    prefill, other = make_side(1, gated(mode="fail")), make_side(3, gated())
    decode = make_side(2, far := gated())
    decode.pull(other.grant("p", [4]), [3], "pulled")
    assert far.started.wait(30)
    request = push(prefill, decode)
    request.reserve()
    request.announce()
    request.compute(0, 3)
    wait_until(lambda: bool(prefill.node.counters.transfer_failures))
    request.finish()
    wait_until(lambda: far.generation == 2)
    far.gate.set()
    assert decode.result().ok
    assert decode.kv.holds([3], other.kv, [4])
    assert result_of(request).ok


def test_a_transport_that_cannot_be_fenced_is_given_up(
    make_side: Make, gated: Make, push: Make, result_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill = make_side(1, near := gated(mode="fail"))
    decode = make_side(2, far := gated(), TcpTransport())
    monkeypatch.setattr(far, "register", _refuse)
    request = push(prefill, decode)
    request.reserve()
    request.announce()
    request.finish()
    assert not result_of(request).ok
    assert decode.node.transports == ("tcp",)
    assert near.land() == 0


def _refuse(regions: Any) -> None:
    raise TransferError("refused by the test")


def test_cancelling_the_unknown_is_ignored(make_side: Make) -> None:
    side = make_side(1)
    side.node.receiver.cancel(RequestId("nobody"))
    assert side.node.receiver.take_finished() == []


def test_cancelled_while_it_pulls_instead(
    make_side: Make, gated: Make, push: Make, result_of: Make, wait_until: Wait
) -> None:
    prefill = make_side(1, gated(mode="fail"))
    decode = make_side(2, pulling := gated())
    request = push(prefill, decode)
    request.reserve()
    request.announce()
    request.finish()
    assert pulling.started.wait(30)
    request.cancel()
    assert result_of(request).reason == "cancelled"
    assert pulling.cancelled == 1
    wait_until(lambda: bool(request.is_freed))
