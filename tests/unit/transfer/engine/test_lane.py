"""Many requests over one transport: fair rounds, one batch a round, the limit, slowness, leaving."""

import asyncio
import time

import numpy as np
import pytest

from llmserve.transfer.base import Batch, Spans, TransferState, TransferStatus
from llmserve.transfer.engine.lane import (
    QUANTUM_BYTES,
    QUANTUM_PIECES,
    ROUND_BYTES,
    ROUND_PIECES,
    Lane,
    TokenBucket,
)

MIB = 1 << 20
DONE = TransferStatus(TransferState.DONE)


class Wire:
    """A transport's read: each batch is kept, and done when `go` is set."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.go = asyncio.Event()
        self.status = DONE
        self.running = 0
        self.cancelled = 0

    async def read(self, batch: Batch) -> TransferStatus:
        self.batches.append(batch)
        self.running += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return self.status


def _batch(region: int, pieces: int, piece_bytes: int = MIB) -> Batch:
    spans = Spans(
        np.full(pieces, region), np.arange(pieces, dtype=np.int64) * piece_bytes, np.full(pieces, piece_bytes)
    )
    return Batch(spans, spans)


def _lane(wire: Wire, seconds: float = 10.0, bucket: TokenBucket | None = None) -> Lane:
    return Lane(wire.read, lambda size: seconds, bucket)


async def _turn() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_one_small_hand_over_is_one_batch_as_it_is() -> None:
    wire, batch = Wire(), _batch(0, 11)
    wire.go.set()
    assert (await _lane(wire).move(batch)).state is TransferState.DONE
    (sent,) = wire.batches
    np.testing.assert_array_equal(sent.local.offsets, batch.local.offsets)


async def test_small_pieces_fill_a_round_by_their_number() -> None:
    wire = Wire()
    wire.go.set()
    lane = _lane(wire)
    await asyncio.gather(*(lane.move(_batch(region, 30_000, 16)) for region in range(3)))
    numbers = [len(batch.local.lengths) for batch in wire.batches]
    assert sum(numbers) == 90_000
    assert max(numbers) < ROUND_PIECES + QUANTUM_PIECES
    assert set(wire.batches[0].local.regions.tolist()) == {0, 1, 2}, "in fair turns"


async def test_every_piece_moves_exactly_once() -> None:
    wire = Wire()
    wire.go.set()
    lane = _lane(wire)
    await asyncio.gather(*(lane.move(_batch(region, 7 + 13 * region)) for region in range(5)))
    moved = [
        (int(r), int(o)) for b in wire.batches for r, o in zip(b.local.regions, b.local.offsets, strict=True)
    ]
    assert len(moved) == len(set(moved)) == sum(7 + 13 * region for region in range(5))
    assert all(batch.local.total_bytes <= ROUND_BYTES + QUANTUM_BYTES for batch in wire.batches)


async def test_a_small_one_is_not_stuck_behind_a_large_one() -> None:
    wire = Wire()
    lane = _lane(wire)
    large = asyncio.create_task(lane.move(_batch(0, 200)))
    await _turn()
    small = asyncio.create_task(lane.move(_batch(1, 2)))
    await _turn()
    assert len(wire.batches) == 2, "two rounds are in flight"
    wire.go.set()
    assert (await small).state is TransferState.DONE
    assert 1 in wire.batches[2].local.regions, "it goes with the next round"
    await large


async def test_requests_that_wait_together_share_a_batch() -> None:
    wire = Wire()
    wire.go.set()
    lane = _lane(wire)
    await asyncio.gather(*(lane.move(_batch(region, 1)) for region in range(8)))
    assert len(wire.batches) == 1


async def test_a_failure_is_everybodys_who_was_in_it() -> None:
    wire = Wire()
    wire.status = TransferStatus(TransferState.FAILED, "broken")
    wire.go.set()
    lane = _lane(wire)
    results = await asyncio.gather(lane.move(_batch(0, 1)), lane.move(_batch(1, 100)))
    assert [result.reason for result in results] == ["broken", "broken"]
    await _turn()
    assert wire.running == 0
    wire.status = DONE
    assert (await lane.move(_batch(2, 1))).state is TransferState.DONE


async def test_too_slow_is_a_failure() -> None:
    wire = Wire()
    result = await _lane(wire, seconds=0.02).move(_batch(0, 1))
    assert result.state is TransferState.FAILED
    assert "too slow" in result.reason
    assert (wire.running, wire.cancelled) == (0, 1)


async def test_a_hang_is_found_once_for_all() -> None:
    wire = Wire()
    seconds = iter([0.2, 100.0])
    lane = Lane(wire.read, lambda size: next(seconds))
    first = asyncio.create_task(lane.move(_batch(0, 1)))
    await _turn()
    others = [asyncio.create_task(lane.move(_batch(region, 20))) for region in (1, 2)]
    results = await asyncio.wait_for(asyncio.gather(first, *others), 30)
    assert ["too slow" in result.reason for result in results] == [True] * 3
    assert (wire.running, wire.cancelled) == (0, 2)


async def test_who_leaves_alone_ends_the_read() -> None:
    wire = Wire()
    task = asyncio.create_task(_lane(wire).move(_batch(0, 1)))
    await _turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (wire.running, wire.cancelled) == (0, 1)


async def test_who_leaves_others_waits_for_the_shared_read() -> None:
    wire = Wire()
    lane = _lane(wire)
    stays, leaves = (asyncio.create_task(lane.move(_batch(region, 1))) for region in range(2))
    await _turn()
    leaves.cancel()
    await _turn()
    assert not leaves.done(), "its memory is still written to"
    wire.go.set()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert (await stays).state is TransferState.DONE
    assert wire.cancelled == 0


async def test_who_leaves_the_queue_sends_nothing() -> None:
    wire = Wire()
    lane = _lane(wire)
    large = asyncio.create_task(lane.move(_batch(0, 32)))
    await _turn()
    leaves = asyncio.create_task(lane.move(_batch(1, 1)))
    await _turn()
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    wire.go.set()
    await large
    assert all(1 not in batch.local.regions for batch in wire.batches)


async def test_who_waits_for_a_broken_transport_is_told() -> None:
    wire = Wire()
    lane = _lane(wire)
    large = asyncio.create_task(lane.move(_batch(0, 32)))
    await _turn()
    waits = asyncio.create_task(lane.move(_batch(1, 1)))
    await _turn()
    lane.refuse_waiting("out of use")
    assert await waits == TransferStatus(TransferState.FAILED, "out of use")
    wire.go.set()
    assert (await large).state is TransferState.DONE, "it was on its way already"


async def test_an_empty_batch_is_done() -> None:
    assert (await _lane(Wire()).move(_batch(0, 0))).state is TransferState.DONE


async def test_the_limit_holds_for_all_lanes_together() -> None:
    wire, bucket = Wire(), TokenBucket(100 * MIB)
    wire.go.set()
    lanes = [_lane(wire, bucket=bucket) for _ in range(2)]
    started = time.monotonic()
    await asyncio.gather(*(lane.move(_batch(0, 10)) for lane in lanes))
    assert time.monotonic() - started > (20 - 5) / 100 - 0.01
    assert all(batch.local.total_bytes <= bucket.burst_bytes + MIB for batch in wire.batches)


def test_the_bucket_gives_what_it_has() -> None:
    bucket = TokenBucket(1000.0)
    assert bucket.take(50, 10.0) == 0.0, "a burst"
    assert bucket.take(100, 10.0) == pytest.approx(0.1)
    assert bucket.take(100, 10.0) == pytest.approx(0.2)
    assert bucket.take(10, 20.0) == 0.0
