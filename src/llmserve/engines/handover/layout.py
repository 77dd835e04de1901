"""Where the KV blocks of one rank lie in memory, and the batch that copies some of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, Int64Array, Region, Spans


@dataclass(frozen=True, slots=True)
class KvGeometry:
    """What both ends must have in common. block_bytes[l] is the size of one block of layer l."""

    block_bytes: tuple[int, ...]
    block_size_tokens: int
    kv_dtype: str
    layout: str
    model: str

    def to_message(self) -> dict[str, Any]:
        return asdict(self)

    def difference(self, other: Mapping[str, Any]) -> str:
        """In words, the first field in which the message of a peer differs; empty when none does."""
        for name, mine in self.to_message().items():
            theirs = other.get(name)
            if (list(mine) if isinstance(mine, tuple) else mine) != theirs:
                return f"{name} differs: {_brief(theirs)} there, {_brief(mine)} here"
        return ""


def _brief(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"{len(value)} layers of {sorted(set(map(str, value)))[:4]}"
    return repr(value)[:80]


@dataclass(frozen=True, slots=True)
class KvLayout:
    """regions[l] holds the blocks of layer l back to back: block b begins at b * block_bytes[l].

    The memory outlives every transport it is registered with. kv_dtype, layout and model are
    compared with those of the peer and mean nothing here."""

    regions: tuple[Region, ...]
    block_bytes: tuple[int, ...]
    block_size_tokens: int
    kv_dtype: str = ""
    layout: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        if not self.regions or len(self.regions) != len(self.block_bytes):
            raise TransferError("a KV layout needs one region and one block size for each layer")
        if min(self.block_bytes) <= 0:
            raise TransferError("a KV block has a positive size")

    @property
    def geometry(self) -> KvGeometry:
        return KvGeometry(self.block_bytes, self.block_size_tokens, self.kv_dtype, self.layout, self.model)

    @property
    def total_blocks(self) -> int:
        sizes = zip(self.regions, self.block_bytes, strict=True)
        return min(region.length_bytes // size for region, size in sizes)

    def batch(self, local_ids: Sequence[int], remote_ids: Sequence[int]) -> Batch:
        """All layers of the blocks; runs of blocks that are adjacent on both sides become one span
        a layer. Errors: TransferError."""
        local, remote, counts = _runs(local_ids, remote_ids)
        return Batch(self._spans(local, counts), self._spans(remote, counts))

    def layer_batch(self, rows: Sequence[tuple[int, Sequence[int], Sequence[int]]]) -> Batch:
        """Blocks of some layers; each row is a layer, its local and its remote blocks. Runs are joined as
        in `batch`. Errors: TransferError."""
        runs = [_runs(local_ids, remote_ids) for _, local_ids, remote_ids in rows]
        counts = np.concatenate([counts for _, _, counts in runs])
        layers = np.repeat([layer for layer, _, _ in rows], [len(local) for local, _, _ in runs])
        sizes = np.asarray(self.block_bytes, np.int64)[layers]
        local = np.concatenate([local for local, _, _ in runs])
        remote = np.concatenate([remote for _, remote, _ in runs])
        return Batch(
            Spans(layers, local * sizes, counts * sizes), Spans(layers, remote * sizes, counts * sizes)
        )

    def _spans(self, first: Int64Array, counts: Int64Array) -> Spans:
        sizes = np.asarray(self.block_bytes, np.int64)[:, None]
        regions = np.repeat(np.arange(len(self.block_bytes), dtype=np.int64), len(first))
        return Spans(regions, (first[None, :] * sizes).ravel(), (counts[None, :] * sizes).ravel())


def _runs(local_ids: Sequence[int], remote_ids: Sequence[int]) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Where runs of blocks that are adjacent on both sides begin, and how long they are."""
    if len(local_ids) != len(remote_ids) or not local_ids:
        raise TransferError(f"{len(local_ids)} local blocks for {len(remote_ids)} remote ones")
    local, remote = np.asarray(local_ids, np.int64), np.asarray(remote_ids, np.int64)
    breaks = (np.diff(local) != 1) | (np.diff(remote) != 1)
    starts = np.flatnonzero(np.concatenate(([True], breaks)))
    counts = np.diff(np.concatenate((starts, [len(local)])))
    return local[starts], remote[starts], counts
