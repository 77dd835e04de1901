"""The parts of transfers from and to the memory of a device, which pass through slots of pinned memory.

A message may be as long as a part, so each slot holds a whole part. Two parts of a transfer are in flight:
one is copied while the other one is on the network. Nothing here waits: what is not done yet is looked at in
the next turn of the loop. What goes over the network is the same as from host memory.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Region, Spans
from llmserve.transfer.devices import Bytes, Mark, RegionCopies, Staging
from llmserve.transfer.devices.staging import PinnedSlots
from llmserve.transfer.ucx import wire
from llmserve.transfer.ucx.link import PartTransfer, UcxLink

_SLOTS = 2  # of each direction
PINNED_BYTES = 2 * _SLOTS * wire.PART_BYTES  # of a process, at most
_PATIENCE_SECONDS = 3.0


class PartSlots:
    """The slots of one transport for each direction, made at their first use."""

    def __init__(self, staging: Staging) -> None:
        self.copies = staging.copies
        self.outgoing = PinnedSlots(self.copies, _SLOTS, wire.PART_BYTES)
        self.incoming = PinnedSlots(self.copies, _SLOTS, wire.PART_BYTES)


class StagedRegions:
    """Registered regions of which some are memory of a device."""

    def __init__(self, regions: Sequence[Region], slots: PartSlots) -> None:
        """Errors: TransferError for memory of another device."""
        self._memory = RegionCopies(regions, slots.copies)
        self._slots = slots
        self.lengths = self._memory.lengths

    def send(self, link: UcxLink, part: int, spans: Spans) -> "StagedPart":
        def move(staged: StagedPart, packed: Bytes) -> Iterator[None]:
            yield from staged.copied(self._memory.gather(spans, packed))
            _check_open(link)
            yield from staged.moved(link.send(part, packed))

        return StagedPart(link, self._slots.outgoing, spans.total_bytes, move)

    def receive(self, link: UcxLink, part: int, spans: Spans, announce: Callable[[], None]) -> "StagedPart":
        def move(staged: StagedPart, packed: Bytes) -> Iterator[None]:
            announce()
            yield from staged.moved(link.receive(part, packed))
            if not staged.failure:
                yield from staged.copied(self._memory.scatter(spans, packed))

        return StagedPart(link, self._slots.incoming, spans.total_bytes, move)


_Move = Callable[["StagedPart", Bytes], Iterator[None]]


class StagedPart:
    """One part in one direction. move: does everything with the bytes of a slot, and yields where it has to
    wait; it may raise TransferError while no message is in flight."""

    def __init__(self, link: UcxLink, slots: PinnedSlots, size: int, move: _Move) -> None:
        self.failure = ""
        self.copying = False
        self._ended = False
        self._steps = self._run(link, slots, size, move)
        self.over()

    def over(self) -> bool:
        try:
            next(self._steps)
        except StopIteration:
            self._ended = True
        except TransferError as error:
            self.failure, self._ended = error.message, True
        return self._ended

    def copied(self, mark: Mark) -> Iterator[None]:
        """Waits for the end of a copy, which nothing announces."""
        self.copying = True
        try:
            while not mark.reached():
                yield
        finally:
            self.copying = False

    def moved(self, message: PartTransfer) -> Iterator[None]:
        """Waits for the end of a message."""
        while not message.over():
            yield
        self.failure = message.failure

    def _run(self, link: UcxLink, slots: PinnedSlots, size: int, move: _Move) -> Iterator[None]:
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        while (slot := slots.try_take()) is None:
            if time.monotonic() > give_up_at:
                raise TransferError(f"no pinned slot became free within {_PATIENCE_SECONDS:g} s")
            yield
            _check_open(link)
        try:
            yield from move(self, slot[:size])
        finally:
            slots.give_back(slot)


def _check_open(link: UcxLink) -> None:
    """Checks that messages may start: time has passed since the part was asked for. Errors: TransferError."""
    if link.leaving:
        raise TransferError("the connection was given up")
