"""Shapes of KV caches: what two workers of one model must know to copy from one cache into the other.

A block (of vLLM, the unit of block ids) is one or more kernel blocks. In a kernel block the axes lie as the
layout says: heads outside of the tokens (H before N) or inside (N before H). What one head keeps of the
tokens consists of parts, usually keys and values. A part is rows of groups: where an attention kernel
transposes or interleaves tokens, a row holds one slice of every token's content, and a group is the least
number of tokens that stay together in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from msgspec import Meta

from llmserve.core.errors import TransferError
from llmserve.core.kv_params import MOST_GROUPS, Text, Word
from llmserve.engines.kv_transfer.layout.heads import HeadShard
from llmserve.engines.kv_transfer.layout.placement import AXIS_ORDERS, LayerPlacement
from llmserve.transfer.base import Int64Array

_MOST_LAYERS = 4096
_Number = Annotated[int, Meta(ge=1, lt=1 << 32)]


@dataclass(frozen=True, slots=True)
class KvPart:
    """`rows` rows one after the other; each holds all tokens of a kernel block in order, group_tokens of them
    in every group_bytes bytes."""

    rows: _Number
    group_tokens: _Number
    group_bytes: _Number

    def row_bytes(self, tokens: int) -> int:
        return tokens // self.group_tokens * self.group_bytes


@dataclass(frozen=True, slots=True)
class Strips:
    """Where some heads lie in a kernel block, as runs of equal groups: four arrays of shape [n]. A strip's
    group g begins at offset + g * stride and has `bytes` bytes, of `tokens` tokens."""

    offsets: Int64Array
    tokens: Int64Array
    strides: Int64Array
    bytes: Int64Array

    @property
    def is_dense(self) -> bool:
        """Groups follow each other without gaps."""
        return bool((self.strides == self.bytes).all())


@dataclass(frozen=True, slots=True)
class KvGeometry:
    """block_bytes[l]: of one block of layer l on this rank. layout: the order of the axes, and after a slash
    how the kernel packs a block ("LBHNC/vec"). kernel_block_tokens: 0 for one kernel block a block. parts: of
    one head, in order; empty when blocks can only be copied whole. placements: of each layer; empty when the
    blocks of layer l lie back to back in region l. windows[g]: tokens that a layer of group g sees, its own
    included; 0 for all. With several groups, "layer" here means the layers that share a place in memory, one
    of each group. Errors: TransferError without sense."""

    block_bytes: Annotated[tuple[Word, ...], Meta(min_length=1, max_length=_MOST_LAYERS)]
    block_size_tokens: _Number
    kv_dtype: Text = ""
    layout: Text = ""
    model: Text = ""
    shard: HeadShard = field(default_factory=HeadShard)
    parts: tuple[KvPart, ...] = ()
    kernel_block_tokens: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    placements: Annotated[tuple[LayerPlacement, ...], Meta(max_length=_MOST_LAYERS)] = ()
    windows: Annotated[tuple[Word, ...], Meta(min_length=1, max_length=MOST_GROUPS)] = (0,)

    def __post_init__(self) -> None:
        if not self.block_bytes or min(self.block_bytes) <= 0 or self.block_size_tokens <= 0:
            raise TransferError("a KV block has layers, tokens and a positive size")
        if self.block_size_tokens % self.kernel_tokens:
            raise TransferError(
                f"blocks of {self.block_size_tokens} tokens cannot consist of {self.kernel_tokens} each"
            )
        if len(self.placements) not in (0, len(self.block_bytes)):
            raise TransferError(f"{len(self.placements)} placements of {len(self.block_bytes)} layers")
        for size in set(self.block_bytes):
            if size % (self.kernel_blocks * self.held_heads):
                raise TransferError(f"blocks of {size} bytes cannot hold {self._shape_words()}")
            if self.parts and not self._fill(size):
                raise TransferError(f"blocks of {size} bytes do not consist of {_brief(self.parts)}")

    def _fill(self, layer_bytes: int) -> bool:
        if any(self.kernel_tokens % part.group_tokens for part in self.parts):
            return False
        if self.heads_inside and (len(self.parts) > 1 or self.parts[0].rows > 1):
            return False
        sizes = (part.rows * part.row_bytes(self.kernel_tokens) for part in self.parts)
        return self.head_bytes(layer_bytes) == sum(sizes)

    # -- sizes

    @property
    def kernel_tokens(self) -> int:
        return self.kernel_block_tokens or self.block_size_tokens

    @property
    def kernel_blocks(self) -> int:
        """Number of kernel blocks in a block."""
        return self.block_size_tokens // self.kernel_tokens

    @property
    def pushed_layers(self) -> int:
        """Number of layers, group after group: number n writes blocks of group n // len(block_bytes), where
        layer n % len(block_bytes) of this geometry lies."""
        return len(self.block_bytes) * len(self.windows)

    @property
    def held_heads(self) -> int:
        return len(self.shard.heads)

    def head_bytes(self, layer_bytes: int) -> int:
        """Bytes of one head in a kernel block of a layer. layer_bytes: size of a block of that layer."""
        return layer_bytes // (self.kernel_blocks * self.held_heads)

    @property
    def heads_inside(self) -> bool:
        """Each token has all heads side by side."""
        return -1 < self._axes.find("N") < self._axes.find("H")

    @property
    def _heads_outside(self) -> bool:
        return -1 < self._axes.find("H") < self._axes.find("N") or self.held_heads == 1

    @property
    def _axes(self) -> str:
        return self.layout.partition("/")[0]

    @property
    def _block_layout(self) -> str:
        """The layout within a block; where blocks and layers lie is told by the placements."""
        if self._axes not in AXIS_ORDERS:
            return self.layout
        return f"{'NHC' if self.heads_inside else 'HNC'}/{self.layout.partition('/')[2]}"

    # -- places

    def placement(self, layer: int) -> LayerPlacement:
        if self.placements:
            return self.placements[layer]
        return LayerPlacement(layer, 0, self.block_bytes[layer] // self.kernel_blocks)

    @property
    def is_dense(self) -> bool:
        """Whether in each layer blocks follow each other without gaps."""
        sizes = zip(self.placements, self.block_bytes, strict=False)
        return all(
            one.block_stride * self.kernel_blocks == size and not one.head_stride for one, size in sizes
        )

    # -- two of them

    def is_like(self, peer: "KvGeometry") -> bool:
        """Whether blocks of both have the same sizes."""
        mine = (self.block_size_tokens, self.kernel_tokens, self.block_bytes)
        return mine == (peer.block_size_tokens, peer.kernel_tokens, peer.block_bytes)

    def copies_whole(self, peer: "KvGeometry") -> bool:
        """Whether kernel blocks, or heads of them, are copied in one piece."""
        if self.kernel_tokens != peer.kernel_tokens:
            return False
        return self.held_heads == peer.held_heads or (self._heads_outside and peer._heads_outside)

    def obstacle(self, peer: "KvGeometry") -> str:
        """Reason why KV cannot go from the peer to here; empty when it can."""
        for name, there, here in self._must_equal(peer):
            if there != here:
                return f"{name} differs: {_brief(there)} there, {_brief(here)} here"
        cells, peer_cells = self._block_cells, peer._block_cells
        sizes = zip(self.block_bytes, peer.block_bytes, strict=True)
        for here, there in sizes:
            if here * peer_cells != there * cells:
                return (
                    f"bytes of a token and head differ: {there / peer_cells:g} there, {here / cells:g} here"
                )
        if why := self._uncuttable(peer):
            return f"{peer._shape_words()} there, {self._shape_words()} here, and {why}"
        return ""

    def _must_equal(self, peer: "KvGeometry") -> Sequence[tuple[str, object, object]]:
        return [
            ("model", peer.model, self.model),
            ("kv_dtype", peer.kv_dtype, self.kv_dtype),
            *self._layouts(peer),
            ("number of KV heads", peer.shard.kv_heads, self.shard.kv_heads),
            ("number of layers", len(peer.block_bytes), len(self.block_bytes)),
            ("packing", peer.parts, self.parts),
            ("windows of the groups of layers", peer.windows, self.windows),
        ]

    def _layouts(self, peer: "KvGeometry") -> Sequence[tuple[str, object, object]]:
        alike = peer._block_layout == self._block_layout
        return [] if alike else [("layout", peer.layout, self.layout)]

    def _uncuttable(self, peer: "KvGeometry") -> str:
        if self.copies_whole(peer):
            return ""
        if not self.parts:
            return f"blocks of layout {self.layout!r} can only be copied whole"
        if not all(geometry.heads_inside or geometry._heads_outside for geometry in (self, peer)):
            return f"layout {self.layout!r} does not say where a head lies"
        return ""

    @property
    def _block_cells(self) -> int:
        """Tokens times heads of a block."""
        return self.held_heads * self.block_size_tokens

    def _shape_words(self) -> str:
        return (
            f"blocks of {self.kernel_tokens} tokens with {self.held_heads} of {self.shard.kv_heads} KV heads"
        )

    # -- inside a kernel block

    def strips(self, layer_bytes: int, heads: range, *, whole: bool, head_stride: int = 0) -> Strips:
        """Where heads of this rank lie in one layer. heads: numbered over the model. whole: as one group, or
        as one for each head if there is a stride. head_stride: from one head to the next; 0: back to back."""
        first = heads.start - self.shard.heads.start
        head_bytes = self.head_bytes(layer_bytes)
        starts = (first + np.arange(len(heads), dtype=np.int64)) * (head_stride or head_bytes)
        if whole and head_stride:
            sizes = [head_bytes] * len(heads)
            return _strips(starts.tolist(), [self.kernel_tokens] * len(heads), sizes, sizes)
        if whole:
            size = len(heads) * head_bytes
            return _strips([first * head_bytes], [self.kernel_tokens], [size], [size])
        if self.heads_inside:
            cell = self.parts[0].group_bytes
            tokens = self.parts[0].group_tokens
            return _strips([first * cell], [tokens], [self.held_heads * cell], [len(heads) * cell])
        rows = self._rows()
        groups = np.tile(rows[:, 2], len(heads))
        offsets = (starts[:, None] + rows[None, :, 0]).ravel()
        return Strips(offsets, np.tile(rows[:, 1], len(heads)), groups, groups)

    def _rows(self) -> Int64Array:
        """Rows of one head: offset, tokens of a group, bytes of a group."""
        found: list[Int64Array] = []
        start = 0
        for part in self.parts:
            row_bytes = part.row_bytes(self.kernel_tokens)
            rows = np.empty((part.rows, 3), np.int64)
            rows[:, 0] = start + np.arange(part.rows) * row_bytes
            rows[:, 1], rows[:, 2] = part.group_tokens, part.group_bytes
            found.append(rows)
            start += part.rows * row_bytes
        return np.concatenate(found)


def _strips(offsets: list[int], tokens: list[int], strides: list[int], sizes: list[int]) -> Strips:
    return Strips(*(np.asarray(column, np.int64) for column in (offsets, tokens, strides, sizes)))


def _brief(value: object) -> str:
    return repr(value)[:120]
