"""Slots between a device and a network."""

import threading
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Region, Spans
from llmserve.transfer.devices import Bytes, Copies, HostCopies, RegionCopies, Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.devices.staging import SLOT_BYTES, PinnedSlots

SIZE = 5 * SLOT_BYTES // 2  # two slots and a half
LATE = 0.01


class Ends:
    """A device with two regions, its staging, and what the network has seen of it."""

    def __init__(self, device: FakeDevice, slots: int = 4, patience_seconds: float = 5.0) -> None:
        self.device = device
        self.staging = Staging(device, slots, patience_seconds)
        self.regions = [device.allocate(SIZE) for _ in range(2)]
        self.views = [device.view(region) for region in self.regions]
        for seed, view in enumerate(self.views):
            view[:] = np.random.default_rng(seed).integers(0, 256, SIZE, np.uint8)
        self.memory = RegionCopies(self.regions, device)

    def sent(self, spans: Spans) -> Bytes:
        seen: list[Bytes] = []
        self.staging.outgoing(self.memory, spans, lambda packed: seen.append(packed.copy()))
        return np.concatenate(seen)

    def receive(self, spans: Spans, content: Bytes) -> None:
        self.staging.put(self.memory, spans, content)

    def assert_all_slots_free(self, slots: int = 4) -> None:
        """Nobody holds one, and none was lost."""
        for pool in (self.staging._outgoing, self.staging._incoming):
            taken = [pool.try_take() for _ in range(slots)]
            assert all(slot is not None for slot in taken)
            for slot in taken:
                assert slot is not None
                pool.give_back(slot)


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    made = FakeDevice(lateness_seconds=LATE)
    yield made
    made.close()


@pytest.fixture
def ends(device: FakeDevice) -> Ends:
    return Ends(device)


def everything() -> Spans:
    """Both regions, the second one first, in pieces that no slot ends with."""
    offsets = np.arange(0, SIZE, 1_000_003)
    lengths = np.diff([*offsets, SIZE])
    regions = np.repeat([1, 0], len(offsets))
    return Spans(regions, np.tile(offsets, 2), np.tile(lengths, 2))


def test_sends_the_bytes_of_the_device_in_order(ends: Ends) -> None:
    assert np.array_equal(ends.sent(everything()), np.concatenate(ends.views[::-1]))
    ends.assert_all_slots_free()


def test_bytes_of_the_device_come_to_this_process(ends: Ends) -> None:
    content = np.zeros(2 * SIZE, np.uint8)
    ends.staging.get(ends.memory, everything(), content)
    assert np.array_equal(content, np.concatenate(ends.views[::-1]))
    ends.assert_all_slots_free()


def test_what_was_received_is_in_place_at_the_end(ends: Ends) -> None:
    content = np.random.default_rng(9).integers(0, 256, 2 * SIZE, np.uint8)
    ends.receive(everything(), content)
    assert np.array_equal(np.concatenate(ends.views[::-1]), content)
    ends.assert_all_slots_free()


def test_nothing_is_done_for_no_bytes(ends: Ends) -> None:
    none = Spans(*(np.zeros(1, np.int64) for _ in range(3)))
    ends.staging.outgoing(ends.memory, none, lambda _: pytest.fail("there is nothing"))
    ends.staging.incoming(ends.memory, none, lambda _: pytest.fail("there is nothing"))


def test_the_next_slots_are_filled_while_one_is_sent(ends: Ends) -> None:
    copied: list[int] = []
    ends.staging.outgoing(ends.memory, everything(), lambda _: copied.append(ends.device.copied_bytes))
    assert copied == [slots * SLOT_BYTES for slots in (3, 4, 5, 5, 5)]


def test_one_slot_is_enough(device: FakeDevice) -> None:
    ends = Ends(device, slots=1)
    sent = ends.sent(everything())
    assert np.array_equal(sent, np.concatenate(ends.views[::-1]))
    ends.receive(everything(), sent[::-1].copy())
    assert np.array_equal(np.concatenate(ends.views[::-1]), sent[::-1])
    ends.assert_all_slots_free(1)


def test_many_threads_share_few_slots(device: FakeDevice) -> None:
    ends = Ends(device, slots=2)
    expected, results = np.concatenate(ends.views[::-1]), []
    threads = [threading.Thread(target=lambda: results.append(ends.sent(everything()))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [np.array_equal(sent, expected) for sent in results] == [True] * 6
    ends.assert_all_slots_free(2)


def test_slots_are_only_made_when_they_are_needed(device: FakeDevice) -> None:
    made: list[int] = []

    class Counting(HostCopies):
        def pinned(self, size_bytes: int) -> Bytes:
            made.append(size_bytes)
            return super().pinned(size_bytes)

    host = np.ones(SIZE, np.uint8)
    copies: Copies = Counting()
    staging = Staging(copies)
    assert made == []
    memory = RegionCopies([Region(host.ctypes.data, SIZE)], copies)
    staging.outgoing(memory, Spans(*(np.array([n]) for n in (0, 0, SIZE))), lambda _: None)
    assert made == [SLOT_BYTES] * 3


# -- waiting without holding


def test_no_slot_is_held_while_nothing_arrives(ends: Ends) -> None:
    """Otherwise connections whose peers are slow keep the slots from those whose bytes are there."""
    waits: list[float | None] = []

    def arrived(seconds: float | None) -> bool:
        waits.append(seconds)
        if seconds is None:
            ends.assert_all_slots_free()
        return seconds is None

    ends.staging.incoming(ends.memory, everything(), lambda packed: packed.fill(1), arrived)
    assert waits == [0.0, None] * 5
    assert all((view == 1).all() for view in ends.views)


def test_a_thread_gives_its_slots_back_before_it_waits_for_another(device: FakeDevice) -> None:
    """A second thread has one of the two slots; the first one must not wait for it with bytes unsent."""
    ends = Ends(device, slots=2)
    held = ends.staging._outgoing.take()
    assert np.array_equal(ends.sent(everything()), np.concatenate(ends.views[::-1]))
    ends.staging._outgoing.give_back(held)


def test_who_gets_no_slot_says_so(device: FakeDevice) -> None:
    ends = Ends(device, slots=1, patience_seconds=0.05)
    for pool in (ends.staging._outgoing, ends.staging._incoming):
        pool.take()
    with pytest.raises(TransferError, match=r"none of 1 pinned slots became free within 0\.05 s"):
        ends.sent(everything())
    with pytest.raises(TransferError, match="became free"):
        ends.receive(everything(), np.zeros(2 * SIZE, np.uint8))


def test_a_waiting_thread_gets_the_slot_that_becomes_free() -> None:
    slots = PinnedSlots(HostCopies(), 1, 16)
    first = slots.take()
    timer = threading.Timer(0.05, slots.give_back, [first])
    timer.start()
    assert slots.take() is first
    timer.join()


# -- failures


def test_without_any_pinned_memory_it_fails() -> None:
    device = FakeDevice(pinned_bytes=SLOT_BYTES - 1)
    ends = Ends(device)
    with pytest.raises(TransferError, match="no pinned memory"):
        ends.sent(everything())
    with pytest.raises(TransferError, match="no pinned memory"):
        ends.receive(everything(), np.zeros(2 * SIZE, np.uint8))
    device.close()


def test_with_little_pinned_memory_it_goes_on_with_fewer_slots() -> None:
    device = FakeDevice(pinned_bytes=4 * SLOT_BYTES)
    ends = Ends(device)
    sent = ends.sent(everything())  # takes three
    ends.receive(everything(), sent[::-1].copy())
    assert np.array_equal(np.concatenate(ends.views[::-1]), sent[::-1])
    device.close()


@pytest.mark.parametrize("after", range(5))
def test_a_copy_that_fails_ends_the_transfer(ends: Ends, after: int) -> None:
    ends.device.fail_copy(after)
    with pytest.raises(TransferError, match="a copy of memory of GPU 0 failed"):
        ends.sent(everything())
    ends.assert_all_slots_free()
    ends.device.fail_copy(after)
    with pytest.raises(TransferError, match="a copy of memory of GPU 0 failed"):
        ends.receive(everything(), np.zeros(2 * SIZE, np.uint8))
    ends.assert_all_slots_free()


def test_a_failed_copy_is_never_sent(ends: Ends) -> None:
    ends.device.fail_copy(1)
    seen: list[Bytes] = []
    with suppress(TransferError):
        ends.staging.outgoing(ends.memory, everything(), lambda packed: seen.append(packed.copy()))
    assert len(seen) == 1


def test_a_copy_that_cannot_be_started_ends_the_transfer(ends: Ends) -> None:
    """The addresses belong to a device that is gone."""
    ends.device._allocations.clear()
    with pytest.raises(TransferError, match="outside the memory"):
        ends.sent(everything())
    ends.assert_all_slots_free()


@pytest.mark.parametrize("calls", range(5))
def test_memory_is_left_alone_after_the_network_failed(ends: Ends, calls: int) -> None:
    """Whatever was under way has ended when the error comes out."""
    seen = 0

    def fail(packed: Bytes) -> None:
        nonlocal seen
        packed[:] = 1
        if seen == calls:
            raise ConnectionError("gone")
        seen += 1

    with pytest.raises(ConnectionError):
        ends.staging.outgoing(ends.memory, everything(), fail)
    ends.assert_all_slots_free()
    seen = 0
    with pytest.raises(ConnectionError):
        ends.staging.incoming(ends.memory, everything(), fail)
    after = [view.copy() for view in ends.views]
    ends.assert_all_slots_free()
    done = threading.Event()
    done.wait(3 * LATE)
    assert all(np.array_equal(view, kept) for view, kept in zip(ends.views, after, strict=True))
