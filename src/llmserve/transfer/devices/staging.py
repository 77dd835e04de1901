"""Pinned slots through which bytes pass between the memory of a device and a network that takes only host
memory.

Copies are in flight while the network works on another slot. Both ends cut a transfer at every `SLOT_BYTES`
of their own, so nothing of this is seen on the wire, and a staged end talks to one that is not.

Slots are few, and threads of many connections share them. Two rules keep them from waiting for each other in
a circle, also across two processes: a slot is taken for incoming bytes only when the first of them are there,
and no thread waits for a slot while it holds another one. The first rule needs slots of the same size in all
processes, which is why it is a constant. A peer that stands still keeps its slots; whoever waits for them
fails after `patience_seconds`, and its transfer goes another way.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Spans
from llmserve.transfer.devices.copies import Bytes, Copies, Mark, RegionCopies
from llmserve.transfer.spans import coalesce, split

SLOT_BYTES = 4 << 20
_SLOTS = 4
PINNED_BYTES = 2 * _SLOTS * SLOT_BYTES  # of a process, at most
_DEPTH = 3  # slots of one transfer: one with the network, and two whose copies do not wait for its thread
_PATIENCE_SECONDS = 5.0


class PinnedSlots:
    """Slots of equal size, made at their first use and handed out to threads. Memory that cannot be had means
    fewer slots, unless it is that of the first one."""

    def __init__(
        self, copies: Copies, count: int, slot_bytes: int, patience_seconds: float = _PATIENCE_SECONDS
    ) -> None:
        self.slot_bytes = slot_bytes
        self._copies = copies
        self._patience_seconds = patience_seconds
        self._free: list[Bytes] = []
        self._unmade, self._made = count, 0
        self._changed = threading.Condition()

    def try_take(self) -> Bytes | None:
        """Returns None when no slot is free. Errors: TransferError when not even one can be made."""
        with self._changed:
            return self._free.pop() if self._free else self._make()

    def take(self) -> Bytes:
        """Waits for a slot. The caller holds none. Errors: TransferError when none becomes free."""
        with self._changed:
            slot = self._free.pop() if self._free else self._make()
            if slot is None and self._changed.wait_for(lambda: bool(self._free), self._patience_seconds):
                slot = self._free.pop()
        if slot is None:
            raise TransferError(
                f"none of {self._made} pinned slots became free within {self._patience_seconds:g} s"
            )
        return slot

    def give_back(self, slot: Bytes) -> None:
        with self._changed:
            self._free.append(slot)
            self._changed.notify()

    def _make(self) -> Bytes | None:
        """The caller holds the lock."""
        if not self._unmade:
            return None
        try:
            slot = self._copies.pinned(self.slot_bytes)
        except TransferError:
            if not self._made:
                raise
            self._unmade = 0
            return None
        self._unmade, self._made = self._unmade - 1, self._made + 1
        return slot


Arrived = Callable[[float | None], bool]  # waits so many seconds (None: without end) for the first byte


class Staging:
    """The slots of one process, for each direction. Any thread may call any method."""

    def __init__(
        self, copies: Copies, slots: int = _SLOTS, patience_seconds: float = _PATIENCE_SECONDS
    ) -> None:
        self.copies = copies
        self._outgoing = PinnedSlots(copies, slots, SLOT_BYTES, patience_seconds)
        self._incoming = PinnedSlots(copies, slots, SLOT_BYTES, patience_seconds)

    def outgoing(self, memory: RegionCopies, spans: Spans, send: Callable[[Bytes], None]) -> None:
        """Calls `send` with the bytes of the spans, in order. When this returns or fails, the memory of the
        spans is no longer read. Errors: TransferError, and those of `send`."""
        flights = _SlotsInFlight(self._outgoing)
        try:
            for chunk in split(coalesce(spans), SLOT_BYTES):
                slot = flights.next_slot(send)
                flights.start(slot, chunk.total_bytes, partial(memory.gather, chunk))
                if len(flights) == _DEPTH:
                    flights.land_oldest(send)
            flights.land_all(send)
        finally:
            flights.abandon()

    def incoming(
        self,
        memory: RegionCopies,
        spans: Spans,
        receive: Callable[[Bytes], None],
        arrived: Arrived = lambda _: True,
    ) -> None:
        """Calls `receive`, which fills what it is given with the bytes of the spans, in order. arrived: says
        whether bytes for the next call of `receive` are there. When this returns all bytes are in place; when
        it returns or fails, the memory of the spans is no longer written. Errors: TransferError, and those of
        `receive`."""
        flights = _SlotsInFlight(self._incoming)

        def fill(chunk: Spans, packed: Bytes) -> Mark:
            receive(packed)
            return memory.scatter(chunk, packed)

        try:
            for chunk in split(coalesce(spans), SLOT_BYTES):
                if not arrived(0.0):
                    flights.land_all(_nothing)
                    arrived(None)
                flights.start(flights.next_slot(_nothing), chunk.total_bytes, partial(fill, chunk))
                if len(flights) == _DEPTH:
                    flights.land_oldest(_nothing)
            flights.land_all(_nothing)
        finally:
            flights.abandon()

    def put(self, memory: RegionCopies, spans: Spans, content: Bytes) -> None:
        """Copies bytes of this process to where the spans are. Errors: TransferError."""
        rest = content

        def fill(packed: Bytes) -> None:
            nonlocal rest
            packed[:], rest = rest[: len(packed)], rest[len(packed) :]

        self.incoming(memory, spans, fill)

    def get(self, memory: RegionCopies, spans: Spans, content: Bytes) -> None:
        """Copies the bytes of the spans into memory of this process. Errors: TransferError."""
        rest = content

        def keep(packed: Bytes) -> None:
            nonlocal rest
            rest[: len(packed)] = packed
            rest = rest[len(packed) :]

        self.outgoing(memory, spans, keep)


class _SlotsInFlight:
    """The slots that one call has taken, each with the mark of its copy, the oldest first."""

    def __init__(self, slots: PinnedSlots) -> None:
        self._slots = slots
        self._flying: deque[tuple[Bytes, int, Mark]] = deque()

    def __len__(self) -> int:
        return len(self._flying)

    def next_slot(self, use: Callable[[Bytes], None]) -> Bytes:
        """Takes a slot. If there is none, lands all others before it waits."""
        slot = self._slots.try_take()
        if slot is None:
            self.land_all(use)
            slot = self._slots.take()
        return slot

    def start(self, slot: Bytes, size: int, begin: Callable[[Bytes], Mark]) -> None:
        """begin: starts the copy between the device and the first `size` bytes of the slot."""
        try:
            mark = begin(slot[:size])
        except BaseException:
            self._slots.give_back(slot)
            raise
        self._flying.append((slot, size, mark))

    def land_oldest(self, use: Callable[[Bytes], None]) -> None:
        """Waits for the copy, uses its bytes, and gives the slot back."""
        slot, size, mark = self._flying[0]
        mark.wait()
        use(slot[:size])
        self._flying.popleft()
        self._slots.give_back(slot)

    def land_all(self, use: Callable[[Bytes], None]) -> None:
        while self._flying:
            self.land_oldest(use)

    def abandon(self) -> None:
        """Waits for copies whose bytes nobody wants any more, and gives their slots back."""
        while self._flying:
            slot, _, mark = self._flying.popleft()
            with suppress(TransferError):
                mark.wait()
            self._slots.give_back(slot)


def _nothing(_: Bytes) -> None:
    """Does nothing: what was received is in place when its copy has ended."""
