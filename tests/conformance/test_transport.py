"""Every transport, between real processes: what transfer/base.py promises of bytes that move.
What it promises of ends, deaths and failures is in test_transport_ends.py.
"""

import numpy as np
import pytest

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, PeerName, Spans, TransferState
from tests.conformance.transport_peer import (
    FAR_BYTES,
    FAR_SEED,
    KINDS,
    MORTAL_SEED,
    NEAR_BYTES,
    UNTOUCHED,
    Bytes,
    End,
    Far,
    checksum,
    one,
    pattern,
    spans,
)

SIZES = [1, 2, 4095, 4096, 4097, 1 << 20, (31 << 20) + 1]
COUNTS = [1, 2, 100, 1023, 1024, 1025, 10_000]
HUGE = 256 << 20
MODEST = 48 << 20
SLOTS = 64 << 20  # the most that a transport stages in
PIECE = 3000


def far_bytes(region: int, length: int, offset: int = 0) -> Bytes:
    return pattern(FAR_SEED, region, length, offset)


@pytest.mark.parametrize("size", SIZES)
def test_reads_exactly_what_was_asked_for(near: End, peer: PeerName, size: int) -> None:
    near.succeed("read", peer, one(size, local=3, remote=5, region=1))
    assert np.array_equal(near.local[3 : 3 + size], far_bytes(1, size, 5))
    assert (near.local[:3] == UNTOUCHED).all()
    assert (near.local[3 + size :] == UNTOUCHED).all()


@pytest.mark.parametrize("size", SIZES)
def test_writes_exactly_what_was_asked_for(near: End, peer: PeerName, far: Far, size: int) -> None:
    near.succeed("write", peer, one(size, local=3, remote=5, region=1))
    expected = far_bytes(1, FAR_BYTES[1])
    expected[5 : 5 + size] = UNTOUCHED
    assert far.ask("checksum", 1, 0, FAR_BYTES[1]) == checksum(expected)
    assert (near.local == UNTOUCHED).all()
    far.ask("restore", 1)


def test_moves_a_quarter_gibibyte_in_modest_memory(kind: str, far: Far) -> None:
    near = End(kind, (HUGE,))
    try:
        peer = near.connect(far.description)
        near.local[:] = UNTOUCHED
        here, there = near.mark_memory(), far.ask("mark_memory")
        near.succeed("read", peer, one(HUGE, remote=4099))
        assert checksum(near.local) == far.ask("checksum", 0, 4099, HUGE)
        assert np.array_equal(near.local[-5000:], far_bytes(0, 5000, HUGE + 4099 - 5000))
        near.succeed("write", peer, one(HUGE))
        assert checksum(near.local) == far.ask("checksum", 0, 0, HUGE)
        modest = MODEST + (SLOTS if KINDS[kind].on_device else 0)
        assert near.peak_memory() - here < modest
        assert far.ask("peak_memory") - there < modest
        far.ask("restore", 0)
    finally:
        near.close()


def scattered(count: int) -> Batch:
    """Unaligned pieces of all lengths, empty ones too, which lie apart and in no order."""
    random = np.random.default_rng(count)
    lengths = random.integers(0, PIECE, count)
    near_slots, far_slots = random.permutation(count), random.permutation(count)
    local = Spans(np.zeros(count, np.int64), near_slots * (PIECE + 1), lengths)
    return Batch(local, Spans(np.ones(count, np.int64), far_slots * (PIECE + 3), lengths))


def gather(target: Bytes, at: Spans, source: Bytes, come_from: Spans) -> None:
    """What a transfer should do."""
    for to, start, length in zip(at.offsets, come_from.offsets, at.lengths, strict=True):
        target[to : to + length] = source[start : start + length]


@pytest.mark.parametrize("count", COUNTS)
def test_gathers_scattered_unaligned_spans(near: End, peer: PeerName, count: int) -> None:
    batch = scattered(count)
    near.succeed("read", peer, batch)
    expected = np.full(NEAR_BYTES, UNTOUCHED, np.uint8)
    gather(expected, batch.local, far_bytes(1, FAR_BYTES[1]), batch.remote)
    assert np.array_equal(near.local, expected)


@pytest.mark.parametrize("count", COUNTS)
def test_scatters_unaligned_spans(near: End, peer: PeerName, far: Far, count: int) -> None:
    batch = scattered(count)
    near.local[:] = pattern(0, 0, NEAR_BYTES)
    near.succeed("write", peer, batch)
    expected = far_bytes(1, FAR_BYTES[1])
    gather(expected, batch.remote, near.local, batch.local)
    assert far.ask("checksum", 1, 0, FAR_BYTES[1]) == checksum(expected)
    far.ask("restore", 1)


def test_one_batch_spans_regions(near: End, peer: PeerName) -> None:
    remote = spans((1, 7, 1001), (0, 7, 1001), (1, FAR_BYTES[1] - 1, 1), (0, FAR_BYTES[0] - 1, 1))
    near.succeed(
        "read", peer, Batch(spans((0, 0, 1001), (0, 1001, 1001), (0, 9000, 1), (0, 9001, 1)), remote)
    )
    assert np.array_equal(near.local[:1001], far_bytes(1, 1001, 7))
    assert np.array_equal(near.local[1001:2002], far_bytes(0, 1001, 7))
    assert near.local[9000] == far_bytes(1, 1, FAR_BYTES[1] - 1)[0]
    assert near.local[9001] == far_bytes(0, 1, FAR_BYTES[0] - 1)[0]


@pytest.mark.parametrize("operation", ["read", "write"])
def test_an_empty_batch_is_done(near: End, peer: PeerName, far: Far, operation: str) -> None:
    near.succeed(operation, peer, Batch(spans(), spans()))
    near.succeed(operation, peer, one(0, local=NEAR_BYTES, remote=FAR_BYTES[1], region=1))
    assert (near.local == UNTOUCHED).all()
    assert far.ask("checksum", 1, 0, FAR_BYTES[1]) == checksum(far_bytes(1, FAR_BYTES[1]))


def test_batches_in_flight_may_overlap(near: End, peer: PeerName) -> None:
    """They read the same remote bytes, and some write the same local bytes (of equal content)."""
    size = 1 << 20
    transfers = [near.transport.read(peer, one(size, i * 1000, i * 1000)) for i in range(16)]
    for transfer in reversed(transfers):
        assert near.finish(transfer).state is TransferState.DONE
    length = size + 15 * 1000
    assert np.array_equal(near.local[:length], far_bytes(0, length))
    assert (near.local[length:] == UNTOUCHED).all()


def test_a_batch_ends_while_nobody_asks_about_those_before_it(near: End, peer: PeerName, far: Far) -> None:
    """Large and small, reads and writes, asked about in another order than they were started."""
    large, small = 24 << 20, 4097
    near.local[-small:] = 7
    first = near.transport.read(peer, one(large))
    second = near.transport.write(peer, one(small, NEAR_BYTES - small, region=1))
    third = near.transport.read(peer, one(large, large, 1))
    last = near.transport.read(peer, one(small, 2 * large, 2))
    for transfer in (last, second, third, first):
        status = near.finish(transfer)
        assert status.state is TransferState.DONE, status.reason
    assert np.array_equal(near.local[:large], far_bytes(0, large))
    assert np.array_equal(near.local[large : 2 * large], far_bytes(0, large, 1))
    assert np.array_equal(near.local[2 * large : 2 * large + small], far_bytes(0, small, 2))
    assert far.ask("checksum", 1, 0, small) == checksum(near.local[-small:])
    far.ask("restore", 1)


def test_one_end_reads_from_two_owners_at_once(near: End, peer: PeerName, mortal: Far) -> None:
    other = near.connect(mortal.description)
    assert other != peer
    size = 20 << 20
    first = near.transport.read(peer, one(size))
    second = near.transport.read(other, one(size, local=size))
    assert near.finish(second).state is TransferState.DONE
    assert near.finish(first).state is TransferState.DONE
    assert np.array_equal(near.local[:size], far_bytes(0, size))
    assert np.array_equal(near.local[size : 2 * size], pattern(MORTAL_SEED, 0, size))
    near.transport.disconnect(other)


@pytest.mark.parametrize("operation", ["read", "write"])
def test_two_ends_use_one_owner_at_once(
    near: End, peer: PeerName, far: Far, mortal: Far, operation: str
) -> None:
    """Each its own part of region 1, eight times 4 MiB."""
    size, times = 4 << 20, 8
    rival = mortal.ask("connect", far.description)
    mortal.tell("repeat", operation, rival, one(size, region=1), times)
    ours = near.repeat(operation, peer, one(size, remote=size, region=1), times)
    assert [*ours, *mortal.answer()] == ["done"] * 2 * times
    if operation == "read":
        assert mortal.ask("checksum", 0, 0, size) == checksum(far_bytes(1, size))
        assert np.array_equal(near.local[:size], far_bytes(1, size, size))
    else:
        assert far.ask("checksum", 1, 0, size) == checksum(pattern(MORTAL_SEED, 0, size))
        assert far.ask("checksum", 1, size, size) == checksum(near.local[:size])
        far.ask("restore", 1)


def test_two_ends_read_from_each_other_at_once(own_near: End, mortal: Far) -> None:
    size, times = 8 << 20, 4
    own_near.local[size:] = 7
    mortal.tell("connect", own_near.transport.describe())
    own_near.serve_until(mortal.answered)
    back = mortal.answer()
    there = own_near.connect(mortal.description)
    mortal.tell("repeat", "read", back, one(size, local=size, remote=size), times)
    ours = own_near.repeat("read", there, one(size), times)
    own_near.serve_until(mortal.answered)
    assert [*ours, *mortal.answer()] == ["done"] * 2 * times
    assert np.array_equal(own_near.local[:size], pattern(MORTAL_SEED, 0, size))
    assert mortal.ask("checksum", 0, size, size) == checksum(own_near.local[size : 2 * size])


def test_connecting_again_is_the_same_peer(near: End, peer: PeerName, far: Far) -> None:
    assert near.connect(far.description) == peer


def test_a_peer_can_be_left_and_found_again(near: End, mortal: Far) -> None:
    peer = near.connect(mortal.description)
    near.succeed("read", peer, one(1000))
    near.transport.disconnect(peer)
    near.transport.disconnect(peer)
    with pytest.raises(TransferError, match="not connected"):
        near.transport.read(peer, one(1))
    near.local[:] = UNTOUCHED
    again = near.connect(mortal.description)
    near.succeed("read", again, one(1000))
    assert np.array_equal(near.local[:1000], pattern(MORTAL_SEED, 0, 1000))
    near.transport.disconnect(again)


@pytest.mark.parametrize(
    ("local", "remote"),
    [
        ((0, 0, 10), (2, 0, 10)),
        ((0, 0, 10), (-1, 0, 10)),
        ((1, 0, 10), (0, 0, 10)),
        ((0, NEAR_BYTES - 9, 10), (0, 0, 10)),
        ((0, 0, 10), (0, FAR_BYTES[0] - 9, 10)),
        ((0, 0, 10), (1, FAR_BYTES[1] - 9, 10)),
        ((0, -1, 10), (0, 0, 10)),
        ((0, 0, 10), (0, -1, 10)),
        ((0, 0, -1), (0, 0, -1)),
        ((0, 0, NEAR_BYTES), (0, 2**63 - 1, NEAR_BYTES)),
        ((0, 0, 2**63 - 1), (0, 0, 2**63 - 1)),
        ((0, 0, 10), (0, 0, 11)),
    ],
)
@pytest.mark.parametrize("operation", ["read", "write"])
def test_refuses_what_is_out_of_bounds(
    near: End, peer: PeerName, local: tuple[int, int, int], remote: tuple[int, int, int], operation: str
) -> None:
    start = getattr(near.transport, operation)
    with pytest.raises(TransferError):
        start(peer, Batch(spans(local), spans(remote)))
    good = (0, 0, 1)
    with pytest.raises(TransferError):
        start(peer, Batch(spans(good, local), spans(good, remote)))
    assert (near.local == UNTOUCHED).all()
