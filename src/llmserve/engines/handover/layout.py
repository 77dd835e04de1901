"""Where the KV blocks of one rank lie in memory, and the batch that copies some of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llmserve.core.errors import TransferError
from llmserve.engines.handover.geometry import KvGeometry, KvPart
from llmserve.engines.handover.heads import HeadShard
from llmserve.engines.handover.reshape import BlockRun, batch_between
from llmserve.transfer.base import Batch, Int64Array, Region, Spans


@dataclass(frozen=True, slots=True)
class KvLayout:
    """regions[l] holds the blocks of layer l back to back: block b begins at b * block_bytes[l].

    The memory outlives every transport it is registered with. The other fields are those of KvGeometry."""

    regions: tuple[Region, ...]
    block_bytes: tuple[int, ...]
    block_size_tokens: int
    kv_dtype: str = ""
    layout: str = ""
    model: str = ""
    shard: HeadShard = field(default_factory=HeadShard)
    parts: tuple[KvPart, ...] = ()
    kernel_block_tokens: int = 0

    def __post_init__(self) -> None:
        if len(self.regions) != len(self.block_bytes):
            raise TransferError("a KV layout needs one region and one block size for each layer")
        assert self.geometry, "it checks the rest"

    @property
    def geometry(self) -> KvGeometry:
        return KvGeometry(
            block_bytes=self.block_bytes,
            block_size_tokens=self.block_size_tokens,
            kv_dtype=self.kv_dtype,
            layout=self.layout,
            model=self.model,
            shard=self.shard,
            parts=self.parts,
            kernel_block_tokens=self.kernel_block_tokens,
        )

    @property
    def total_blocks(self) -> int:
        sizes = zip(self.regions, self.block_bytes, strict=True)
        return min(region.length_bytes // size for region, size in sizes)

    def batch(self, local_ids: Sequence[int], remote_ids: Sequence[int]) -> Batch:
        """Between equal geometries, all layers of the blocks; runs of blocks that are adjacent on both sides
        become one span a layer. Errors: TransferError."""
        if len(local_ids) != len(remote_ids) or not local_ids:
            raise TransferError(f"{len(local_ids)} local blocks for {len(remote_ids)} remote ones")
        local, remote = np.asarray(local_ids, np.int64), np.asarray(remote_ids, np.int64)
        breaks = (np.diff(local) != 1) | (np.diff(remote) != 1)
        starts = np.flatnonzero(np.concatenate(([True], breaks)))
        counts = np.diff(np.concatenate((starts, [len(local)])))
        return Batch(self._spans(local[starts], counts), self._spans(remote[starts], counts))

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
        local = BlockRun(local_ids, tokens.start // self.block_size_tokens)
        if mine.is_like(peer):
            end = -(-tokens.stop // self.block_size_tokens)
            return self.batch(local_ids, remote_ids[local.first_index : end])
        return batch_between(mine, peer, heads, tokens, local, BlockRun(remote_ids, 0))

    def _spans(self, first: Int64Array, counts: Int64Array) -> Spans:
        sizes = np.asarray(self.block_bytes, np.int64)[:, None]
        regions = np.repeat(np.arange(len(self.block_bytes), dtype=np.int64), len(first))
        return Spans(regions, (first[None, :] * sizes).ravel(), (counts[None, :] * sizes).ravel())
