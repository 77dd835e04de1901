"""Which part of the arena is a slot of which size. Pure.

The arena is a row of units. A slab is a run of units cut into slots of one size; it is made when a slot of
that size is wanted and none is free, and its units come back when all its slots have. Slabs are short (at
most a sixteenth of one is left over), so that few blocks must go before another size finds room.
"""

from dataclasses import dataclass

from llmserve.kvstore.blocks import SLOT_ALIGNMENT_BYTES, ReserveOutcome

UNIT_BYTES = 2 << 20  # a huge page
_WASTE = 16  # a slab leaves at most 1 / 16 of its bytes unused
_STEPS = 8  # size classes between two powers of two: a slot is at most 1 / 8 larger than its block
_FREE, _TAKEN = b"\1", b"\0"


@dataclass(eq=False, slots=True)
class _Slab:
    first_unit: int
    units: int
    slot_bytes: int
    slots: int
    free: list[int]  # offsets


class SlabMap:
    """Lengths that were announced by `expect` have slots of exactly that size; others share size classes."""

    def __init__(self, capacity_bytes: int, unit_bytes: int = UNIT_BYTES) -> None:
        self._unit_bytes = unit_bytes
        self._units = bytearray(_FREE * (capacity_bytes // unit_bytes))
        self._slabs: dict[int, _Slab] = {}  # by each of its units
        self._with_room: dict[int, dict[_Slab, None]] = {}  # by slot size, oldest first
        self._exact: set[int] = set()
        self.used_bytes = 0

    @property
    def capacity_bytes(self) -> int:
        return len(self._units) * self._unit_bytes

    def expect(self, length_bytes: int) -> None:
        """Announces blocks of exactly this length."""
        self._exact.add(_aligned(length_bytes))

    def slot_bytes(self, length_bytes: int) -> int:
        aligned = _aligned(length_bytes)
        if aligned in self._exact:
            return aligned
        step = max(SLOT_ALIGNMENT_BYTES, (1 << (aligned.bit_length() - 1)) // _STEPS)
        return -(-aligned // step) * step

    def share_bytes(self, length_bytes: int) -> int:
        """Bytes that a slot takes of the arena: its own, and its share of what its slab leaves over."""
        slot_bytes = self.slot_bytes(length_bytes)
        slab_bytes = self._slab_units(slot_bytes) * self._unit_bytes
        return -(-slab_bytes // (slab_bytes // slot_bytes))

    def take(self, length_bytes: int) -> int | ReserveOutcome:
        """The offset of a free slot, or FULL or TOO_LARGE."""
        size = self.slot_bytes(length_bytes)
        if size > self.capacity_bytes:
            return ReserveOutcome.TOO_LARGE
        slabs = self._with_room.setdefault(size, {})
        slab = next(iter(slabs), None) or self._make(size)
        if slab is None:
            return ReserveOutcome.FULL
        offset = slab.free.pop()
        if not slab.free:
            del slabs[slab]
        self.used_bytes += size
        return offset

    def give(self, offset: int) -> None:
        slab = self._slabs[offset // self._unit_bytes]
        slab.free.append(offset)
        self._with_room[slab.slot_bytes][slab] = None
        self.used_bytes -= slab.slot_bytes
        if len(slab.free) == slab.slots:
            self._unmake(slab)

    def check_integrity(self, taken: set[int]) -> None:
        """Raises AssertionError unless exactly these offsets are in use."""
        slabs = set(self._slabs.values())
        cut = {offset for slab in slabs for offset in _offsets(slab, self._unit_bytes)}
        free = [offset for slab in slabs for offset in slab.free]
        assert len(free) == len(set(free)), "a slot is free once"
        assert cut - set(free) == taken
        assert {unit for unit, byte in enumerate(self._units) if not byte} == set(self._slabs)
        assert {s for slabs in self._with_room.values() for s in slabs} == {s for s in slabs if s.free}

    # -- inside

    def _make(self, slot_bytes: int) -> _Slab | None:
        units = self._slab_units(slot_bytes)
        first = self._units.find(_FREE * units)
        if first < 0:
            return self._make_smaller(slot_bytes, units)
        return self._cut(first, units, slot_bytes)

    def _make_smaller(self, slot_bytes: int, tried: int) -> _Slab | None:
        """Makes a slab of the longest free run, when no run is long enough for little waste."""
        for units in range(tried - 1, -(-slot_bytes // self._unit_bytes) - 1, -1):
            first = self._units.find(_FREE * units)
            if first >= 0:
                return self._cut(first, units, slot_bytes)
        return None

    def _cut(self, first: int, units: int, slot_bytes: int) -> _Slab:
        slab = _Slab(first, units, slot_bytes, units * self._unit_bytes // slot_bytes, [])
        slab.free.extend(reversed(_offsets(slab, self._unit_bytes)))
        self._units[first : first + units] = _TAKEN * units
        self._slabs.update(dict.fromkeys(range(first, first + units), slab))
        self._with_room[slot_bytes][slab] = None
        return slab

    def _unmake(self, slab: _Slab) -> None:
        self._units[slab.first_unit : slab.first_unit + slab.units] = _FREE * slab.units
        del self._with_room[slab.slot_bytes][slab]
        for unit in range(slab.first_unit, slab.first_unit + slab.units):
            del self._slabs[unit]

    def _slab_units(self, slot_bytes: int) -> int:
        """The smallest number of units that leaves little over."""
        units = -(-slot_bytes // self._unit_bytes)
        while (units * self._unit_bytes) % slot_bytes * _WASTE > units * self._unit_bytes:
            units += 1
        return units


def _offsets(slab: _Slab, unit_bytes: int) -> range:
    first = slab.first_unit * unit_bytes
    return range(first, first + slab.slots * slab.slot_bytes, slab.slot_bytes)


def _aligned(length_bytes: int) -> int:
    return max(1, -(-length_bytes // SLOT_ALIGNMENT_BYTES)) * SLOT_ALIGNMENT_BYTES
