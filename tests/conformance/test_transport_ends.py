"""Every transport, between real processes: what transfer/base.py promises when something ends: cancelled
transfers, dead peers, closed and re-registered ends, and what an idle or a closed end costs.
"""

import time

import numpy as np
import pytest

from llmserve.core.errors import TransferError
from llmserve.transfer.base import PeerName, Transfer, TransferState
from tests.conformance.transport_peer import (
    FAR_SEED,
    MORTAL_BYTES,
    MORTAL_SEED,
    PATIENCE_SECONDS,
    UNTOUCHED,
    End,
    Far,
    holdings,
    one,
    pattern,
)

LARGE = MORTAL_BYTES[0]
OPERATIONS = pytest.mark.parametrize("operation", ["read", "write"])
SETTLE_SECONDS = 0.05
IDLE_SECONDS = 2.0


def works(near: End, peer: PeerName) -> None:
    """Other peers do not suffer."""
    near.succeed("read", peer, one(1000))
    assert np.array_equal(near.local[:1000], pattern(FAR_SEED, 0, 1000))


def stays_untouched(near: End) -> None:
    time.sleep(SETTLE_SECONDS)  # what is not to happen takes time
    assert (near.local == UNTOUCHED).all()


def all_end(near: End, transfers: list[Transfer]) -> None:
    """Soon, and DONE is only said of data that is there."""
    states = [near.finish(transfer).state for transfer in transfers]
    if TransferState.DONE in states:
        assert np.array_equal(near.local[:LARGE], pattern(MORTAL_SEED, 0, LARGE))


# -- cancel


@OPERATIONS
def test_cancel_right_after_the_start(near: End, peer: PeerName, operation: str, far: Far) -> None:
    start = getattr(near.transport, operation)
    for transfer in [start(peer, one(31 << 20, region=1)) for _ in range(3)]:
        near.give_up(transfer)
    near.local[:] = UNTOUCHED
    stays_untouched(near)
    works(near, peer)
    far.ask("restore", 1)


def test_cancel_in_the_middle(near: End, mortal: Far) -> None:
    """The peer stands still, with some bytes there and others not. A transport may answer that it cannot
    let go yet, but never while it can still touch memory."""
    peer = near.connect(mortal.description)
    transfer = near.transport.read(peer, one(LARGE))
    near.begin(transfer)
    mortal.freeze()
    try:
        near.transport.cancel(transfer)
    except TransferError:
        mortal.thaw()
        near.give_up(transfer)
    near.local[:] = UNTOUCHED
    mortal.thaw()
    stays_untouched(near)
    near.succeed("read", peer, one(LARGE))
    assert np.array_equal(near.local[:LARGE], pattern(MORTAL_SEED, 0, LARGE))
    near.transport.disconnect(peer)


def test_cancel_a_write_to_a_peer_that_stands_still(near: End, mortal: Far) -> None:
    """The peer never sees what is put into local memory after the cancel."""
    peer = near.connect(mortal.description)
    near.succeed("write", peer, one(1, region=1))
    mortal.ask("fill", 0, 0)
    near.local[:] = 1
    mortal.freeze()
    try:
        transfer = near.transport.write(peer, one(LARGE))
        time.sleep(SETTLE_SECONDS)
        near.transport.cancel(transfer)
    except TransferError:
        mortal.thaw()
        near.give_up(transfer)
    near.local[:] = 2
    mortal.thaw()
    near.succeed("write", peer, one(1, region=1))  # the transport goes on working
    assert mortal.ask("count", 0, 2) == 0


def test_cancel_what_has_already_arrived(near: End, peer: PeerName) -> None:
    arrived = near.transport.read(peer, one(1000))
    near.succeed("read", peer, one(1 << 20, local=1 << 20))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not np.array_equal(near.local[:1000], pattern(FAR_SEED, 0, 1000)):
        assert time.monotonic() < deadline, "a transfer waits to be asked about"
        near.succeed("read", peer, one(1, local=1 << 20))
    near.give_up(arrived)
    near.local[:] = UNTOUCHED
    stays_untouched(near)
    works(near, peer)


# -- death


def in_the_middle(near: End, peer: PeerName, far: Far, operation: str) -> list[Transfer]:
    """Transfers with a peer that stands still, and could not do all its part before."""
    if operation == "write":
        far.freeze()
    transfers = [getattr(near.transport, operation)(peer, one(LARGE)) for _ in range(3)]
    if operation == "read":
        near.begin(transfers[0])
        far.freeze()
    return transfers


@pytest.mark.parametrize("moment", ["unused", "idle", "just before", "in the middle"])
@OPERATIONS
def test_the_death_of_a_peer_fails_its_transfers_only(
    near: End, peer: PeerName, mortal: Far, moment: str, operation: str
) -> None:
    doomed = near.connect(mortal.description)
    if moment != "unused":
        near.succeed(operation, doomed, one(1))
        near.local[0] = UNTOUCHED
    flying = in_the_middle(near, doomed, mortal, operation) if moment == "in the middle" else []
    mortal.kill()
    if moment == "idle":
        time.sleep(SETTLE_SECONDS)
    if operation == "read":
        all_end(near, flying)
    else:
        _ = [near.finish(transfer) for transfer in flying]
    status = near.attempt(operation, doomed, one(1 << 20))
    assert status.state is TransferState.FAILED
    assert status.reason
    works(near, peer)
    near.transport.disconnect(doomed)
    near.transport.disconnect(doomed)
    with pytest.raises(TransferError):
        near.transport.read(doomed, one(1))


def test_the_owner_does_not_suffer_from_the_death_of_a_reader(
    near: End, peer: PeerName, far: Far, mortal: Far
) -> None:
    doomed = mortal.ask("connect", far.description)
    for operation in ("read", "write"):
        mortal.tell("repeat", operation, doomed, one(16 << 20, region=1), 1000)
        time.sleep(SETTLE_SECONDS)
    mortal.kill()
    works(near, peer)
    far.ask("restore", 1)


def test_a_peer_that_is_not_there_is_an_error(near: End, peer: PeerName, mortal: Far) -> None:
    mortal.kill()
    try:
        gone = near.connect(mortal.description)
    except TransferError:
        pass
    else:
        assert near.attempt("read", gone, one(1)).state is TransferState.FAILED
        near.transport.disconnect(gone)
    works(near, peer)


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"{}",
        b"\xff\x00",
        b"[1]",
        b"null",
        b'{"host": 1}',
        b"\x00" * 4096,
        b'{"\x81": 1}',
        b"[" * 100_000,
    ],
)
def test_refuses_a_malformed_description(near: End, description: bytes) -> None:
    with pytest.raises(TransferError):
        near.connect(description)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_refuses_part_of_a_description(near: End, far: Far, part: float) -> None:
    with pytest.raises(TransferError):
        near.connect(far.description[: int(len(far.description) * part)])


# -- re-registration


def test_this_end_can_register_anew_in_the_middle(own_near: End, mortal: Far) -> None:
    peer = own_near.connect(mortal.description)
    transfers: list[Transfer] = [own_near.transport.read(peer, one(LARGE)) for _ in range(3)]
    own_near.begin(transfers[0])
    old = own_near.local
    own_near.register(1)
    assert TransferState.RUNNING not in {own_near.transport.poll(transfer).state for transfer in transfers}
    old[:] = UNTOUCHED
    own_near.local[:] = UNTOUCHED
    stays_untouched(own_near)
    assert (old == UNTOUCHED).all()
    own_near.succeed("read", own_near.connect(mortal.description), one(1000))
    assert np.array_equal(own_near.local[:1000], pattern(MORTAL_SEED, 0, 1000))


def test_the_peer_can_register_anew_in_the_middle(near: End, mortal: Far) -> None:
    old = near.connect(mortal.description)
    transfers: list[Transfer] = [near.transport.read(old, one(LARGE)) for _ in range(3)]
    near.begin(transfers[0])
    mortal.tell("register", 9)
    states = [near.finish(transfer).state for transfer in transfers]
    assert TransferState.RUNNING not in states
    fresh = near.connect(mortal.answer())
    near.attempt("read", old, one(1000, local=1 << 20))  # undefined, but it ends
    near.succeed("read", fresh, one(1000))
    assert np.array_equal(near.local[:1000], pattern(9, 0, 1000))
    near.transport.disconnect(old)
    near.succeed("read", fresh, one(1000, local=1000))
    near.transport.disconnect(fresh)


# -- close


@OPERATIONS
def test_close_ends_what_is_in_flight(
    own_near: End, near: End, peer: PeerName, mortal: Far, operation: str
) -> None:
    there = own_near.connect(mortal.description)
    transfers = [getattr(own_near.transport, operation)(there, one(LARGE)) for _ in range(6)]
    own_near.close()
    own_near.close()
    assert TransferState.RUNNING not in {own_near.transport.poll(transfer).state for transfer in transfers}
    own_near.local[:] = UNTOUCHED
    stays_untouched(own_near)
    with pytest.raises(TransferError, match="closed"):
        own_near.transport.read(there, one(1))
    with pytest.raises(TransferError, match="closed"):
        own_near.connect(mortal.description)
    with pytest.raises(TransferError, match="closed"):
        own_near.register(1)
    survivor = near.connect(mortal.description)  # the peer goes on working for others
    near.succeed("read", survivor, one(1000))
    near.transport.disconnect(survivor)


@OPERATIONS
def test_a_peer_that_closes_leaves_nobody_waiting(
    near: End, peer: PeerName, mortal: Far, operation: str
) -> None:
    leaving = near.connect(mortal.description)
    near.succeed(operation, leaving, one(1))
    near.local[:] = UNTOUCHED
    transfers = [getattr(near.transport, operation)(leaving, one(LARGE)) for _ in range(3)]
    mortal.tell("close")
    if operation == "read":
        all_end(near, transfers)
    else:
        _ = [near.finish(transfer) for transfer in transfers]
    mortal.answer()
    works(near, peer)
    near.transport.disconnect(leaving)


# -- what it costs


def test_idle_ends_use_no_cpu(near: End, peer: PeerName, far: Far) -> None:
    """Connected, after work, and nobody calls progress: as when no lease is out. Connections of the tests
    before may take seconds to be given up; an end that stays busy is not idle."""
    near.succeed("read", peer, one(1 << 20))
    for _ in range(3):
        far.tell("idle", IDLE_SECONDS)
        used = {"near": near.idle(IDLE_SECONDS), "far": far.answer()}
        if all(sum(threads.values()) < IDLE_SECONDS / 100 for threads in used.values()):
            return
    raise AssertionError(f"CPU seconds of {IDLE_SECONDS}, by thread: {used}")


def test_nothing_is_left_open(kind: str, far: Far) -> None:
    _life(kind, far)  # what a library opens once and keeps
    here, there = holdings(), far.ask("holdings")
    for _ in range(3):
        _life(kind, far)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (now := holdings()).within(here):  # a thread ends a moment after the transport
        assert time.monotonic() < deadline, f"{here} has become {now}"
        time.sleep(0.01)
    while not (now := far.ask("holdings")).within(there):  # the peer learns later that we have left
        assert time.monotonic() < deadline, f"{there} has become {now}"
        time.sleep(SETTLE_SECONDS)


def _life(kind: str, far: Far) -> None:
    end = End(kind, (1 << 20,))
    peer = end.connect(far.description)
    for operation in ("read", "write"):
        end.succeed(operation, peer, one(1 << 20, region=1))
    shared = holdings().shared_memory
    end.close()
    assert not shared & holdings().shared_memory
