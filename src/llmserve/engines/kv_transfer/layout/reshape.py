"""The batch that copies tokens between KV caches of different shapes. Pure, over whole arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmserve.core.errors import TransferError
from llmserve.engines.kv_transfer.layout.geometry import KvGeometry, Strips
from llmserve.transfer.base import Batch, Int64Array, Spans
from llmserve.transfer.spans import coalesce_pairs


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Consecutive blocks of a prompt on one side; block_ids[0] is block first_index of the prompt."""

    block_ids: Sequence[int]
    first_index: int


def batch_between(
    mine: KvGeometry, peer: KvGeometry, heads: range, tokens: range, local: BlockRun, remote: BlockRun
) -> Batch:
    """All layers of some heads and tokens. Both sides have the heads, and `obstacle` has found none; tokens
    are rounded outwards to what both sides keep together. Errors: TransferError when a side lacks blocks.

    Measured for 1,500 tokens, 30 layers, 3 heads of 64 elements, scattered blocks of 128 tokens here (one
    core of an EPYC): from equal blocks 0.03 ms (KvLayout.batch, 360 pieces); from blocks of 64 tokens 0.13 ms
    where a token's K and V lie side by side (2,160 pieces), 0.16 ms in AMX tiles (10,800), 1.2 ms where K is
    transposed (140,400 pieces: one for each element of K); one of three heads from equal blocks 0.1 ms (360),
    or 0.3 ms where the heads lie inside (45,000)."""
    whole = mine.copies_whole(peer)
    pairs = list(zip(mine.block_bytes, peer.block_bytes, strict=True))
    layers: dict[tuple[int, int], Batch] = {}
    for here, there in set(pairs):
        near, far = mine.strips(here, heads, whole=whole), peer.strips(there, heads, whole=whole)
        cuts = _cuts(tokens, mine, peer, near, far)
        layers[here, there] = coalesce_pairs(
            Batch(_spans(mine, here, near, local, cuts), _spans(peer, there, far, remote, cuts))
        )
    return Batch(
        _all_layers([layers[pair].local for pair in pairs]),
        _all_layers([layers[pair].remote for pair in pairs]),
    )


def _cuts(tokens: range, mine: KvGeometry, peer: KvGeometry, near: Strips, far: Strips) -> Int64Array:
    """Ascending token numbers; what lies between two of them is in one piece on both sides."""
    unit = int(np.lcm.reduce(near.tokens))
    first, end = tokens.start // unit * unit, -(-tokens.stop // unit) * unit
    sizes = [mine.kernel_tokens, peer.kernel_tokens]
    if not (near.is_dense and far.is_dense):
        sizes.append(unit)
    inner = [np.arange(-(-first // size) * size, end, size) for size in sizes]
    return np.unique(np.concatenate(([first, end], *inner)).astype(np.int64))


def _spans(geometry: KvGeometry, layer_bytes: int, strips: Strips, run: BlockRun, cuts: Int64Array) -> Spans:
    """Strips of each piece of the prompt in one layer, which counts as region 0."""
    starts, counts = cuts[:-1], np.diff(cuts)
    blocks, inside = np.divmod(starts, geometry.kernel_tokens)
    begins = _begins(geometry, layer_bytes, run, blocks)[:, None]
    offsets = begins + strips.offsets + inside[:, None] // strips.tokens * strips.strides
    lengths = counts[:, None] // strips.tokens * strips.bytes
    return Spans(np.zeros(offsets.size, np.int64), offsets.ravel(), lengths.ravel())


def _begins(geometry: KvGeometry, layer_bytes: int, run: BlockRun, wanted: Int64Array) -> Int64Array:
    """Offsets of kernel blocks of the prompt in the layer."""
    inner = geometry.kernel_blocks
    index = wanted - run.first_index * inner
    if len(index) == 0 or index[0] < 0 or index[-1] >= len(run.block_ids) * inner:
        raise TransferError(
            f"{len(run.block_ids)} blocks of {geometry.block_size_tokens} tokens lack some of what is fetched"
        )
    ids = np.asarray(run.block_ids, np.int64)[:, None] * inner + np.arange(inner)
    begins: Int64Array = ids.ravel()[index] * (layer_bytes // inner)
    return begins


def _all_layers(layers: Sequence[Spans]) -> Spans:
    counts = [len(spans.lengths) for spans in layers]
    return Spans(
        np.repeat(np.arange(len(layers), dtype=np.int64), counts),
        np.concatenate([spans.offsets for spans in layers]),
        np.concatenate([spans.lengths for spans in layers]),
    )
