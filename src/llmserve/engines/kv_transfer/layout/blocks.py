"""Where the KV blocks of one rank lie in memory, and the batch that copies some of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmserve.core.errors import TransferError
from llmserve.engines.kv_transfer.layout.geometry import KvGeometry
from llmserve.engines.kv_transfer.layout.reshape import BlockRun, batch_between
from llmserve.transfer.base import Batch, Int64Array, Region, Spans


@dataclass(frozen=True, slots=True)
class KvLayout:
    """regions[l] holds the blocks of layer l back to back: block b begins at b * geometry.block_bytes[l].

    The memory outlives every transport it is registered with."""

    regions: tuple[Region, ...]
    geometry: KvGeometry

    def __post_init__(self) -> None:
        if len(self.regions) != len(self.geometry.block_bytes):
            raise TransferError("a KV layout needs one region and one block size for each layer")

    @property
    def total_blocks(self) -> int:
        sizes = zip(self.regions, self.geometry.block_bytes, strict=True)
        return min(region.length_bytes // size for region, size in sizes)

    def batch(self, local_ids: Sequence[int], remote_ids: Sequence[int]) -> Batch:
        """Between equal geometries, all layers of the blocks; runs of blocks that are adjacent on both sides
        become one span a layer. Errors: TransferError."""
        local, remote, counts = _runs(local_ids, remote_ids)
        return Batch(self._spans(local, counts), self._spans(remote, counts))

    def layer_batch(self, rows: Sequence[tuple[int, Sequence[int], Sequence[int]]]) -> Batch:
        """Blocks of some layers; each row is a layer, its local and its remote blocks. Runs are joined as
        in `batch`. Errors: TransferError."""
        runs = [_runs(local_ids, remote_ids) for _, local_ids, remote_ids in rows]
        counts = np.concatenate([counts for _, _, counts in runs])
        layers = np.repeat([layer for layer, _, _ in rows], [len(local) for local, _, _ in runs])
        sizes = np.asarray(self.geometry.block_bytes, np.int64)[layers]
        local = np.concatenate([local for local, _, _ in runs])
        remote = np.concatenate([remote for _, remote, _ in runs])
        return Batch(
            Spans(layers, local * sizes, counts * sizes), Spans(layers, remote * sizes, counts * sizes)
        )

    def batch_from(
        self,
        peer: KvGeometry,
        heads: range,
        tokens: range,
        local_ids: Sequence[int],
        remote_ids: Sequence[int],
    ) -> Batch:
        """All layers of some heads and tokens of a prompt, from a peer whose geometry `obstacle` has let
        pass. local_ids: from the block of the first of these tokens on, remote_ids: of the whole prompt.
        Errors: TransferError."""
        mine = self.geometry
        local = BlockRun(local_ids, tokens.start // mine.block_size_tokens)
        if mine.is_like(peer):
            end = -(-tokens.stop // mine.block_size_tokens)
            return self.batch(local_ids, remote_ids[local.first_index : end])
        return batch_between(mine, peer, heads, tokens, local, BlockRun(remote_ids, 0))

    def _spans(self, first: Int64Array, counts: Int64Array) -> Spans:
        sizes = np.asarray(self.geometry.block_bytes, np.int64)[:, None]
        regions = np.repeat(np.arange(len(self.geometry.block_bytes), dtype=np.int64), len(first))
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
