"""What NIXL has to know of registered memory: its type and the device, in rows of descriptors."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from llmserve.transfer.base import Batch, Int64Array, Region, Spans
from llmserve.transfer.description import Count
from llmserve.transfer.spans import RegionTable

TYPES = ("DRAM", "VRAM")
_ON_HOST = -1


class DescribedRegions(msgspec.Struct):
    """devices: empty when all regions are of the host."""

    addresses: tuple[Count, ...]
    lengths: tuple[Count, ...]
    devices: tuple[Annotated[int, Meta(ge=_ON_HOST, lt=1 << 31)], ...] = ()


@dataclass(frozen=True, slots=True)
class NixlRegions:
    """The regions of one side. devices: the ordinals of their GPUs, as that side counts them, or _ON_HOST.
    all_on_host: whether no region is of a GPU, known beforehand because each transfer asks for it."""

    table: RegionTable
    devices: Int64Array
    all_on_host: bool

    @classmethod
    def of(cls, regions: Sequence[Region]) -> "NixlRegions":
        memories = [region.memory.device for region in regions]
        devices = [_ON_HOST if device is None else device for device in memories]
        return cls._of(RegionTable.of(regions), devices)

    @classmethod
    def parse(cls, fields: "DescribedRegions") -> "NixlRegions":
        """Errors: ValueError for what `fields` cannot have made."""
        table = RegionTable.parse(fields.addresses, fields.lengths)
        devices = fields.devices or (_ON_HOST,) * len(table.lengths)
        if len(devices) != len(table.lengths):
            raise ValueError("devices of other regions")
        return cls._of(table, devices)

    @classmethod
    def _of(cls, table: RegionTable, devices: Sequence[int]) -> "NixlRegions":
        return cls(table, np.array(devices, np.int64), all(device == _ON_HOST for device in devices))

    def fields(self) -> dict[str, Any]:
        """Returns what a peer needs. Regions of the host alone are described as by versions without GPUs."""
        fields = {"addresses": self.table.addresses.tolist(), "lengths": self.table.lengths}
        return fields if self.all_on_host else {**fields, "devices": self.devices.tolist()}

    def types(self, spans: Spans) -> Int64Array:
        """Returns the index in TYPES of each span's memory."""
        types: Int64Array = (self.devices[spans.regions] != _ON_HOST).astype(np.int64)
        return types

    def descriptors(self, spans: Spans) -> npt.NDArray[np.uint64]:
        """Returns rows of address, length and device, which is 0 for the host."""
        rows = np.zeros((len(spans.lengths), 3), dtype=np.uint64)
        rows[:, 0], rows[:, 1] = self.table.starts(spans), spans.lengths
        if not self.all_on_host:
            rows[:, 2] = np.maximum(self.devices[spans.regions], 0)
        return rows


def by_types(batch: Batch, mine: NixlRegions, theirs: NixlRegions) -> Iterator[tuple[tuple[str, str], Batch]]:
    """Cuts a batch so that each side of a part has one type of memory, as NIXL needs it. Yields the types of
    both sides, and the part."""
    if mine.all_on_host and theirs.all_on_host:
        yield (TYPES[0], TYPES[0]), batch
        return
    local, remote = mine.types(batch.local), theirs.types(batch.remote)
    for here, there in itertools.product((0, 1), repeat=2):
        chosen = np.flatnonzero((local == here) & (remote == there))
        if len(chosen):
            yield (TYPES[here], TYPES[there]), Batch(batch.local.take(chosen), batch.remote.take(chosen))
