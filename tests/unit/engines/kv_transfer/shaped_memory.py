"""KV memory of one rank in any shape, filled and read token by token with plain array views.

The content of a prompt is an array [layers, tokens, heads of the model, cell], the cell being what one head
keeps of a token in one layer: K, V and whatever order the packing makes of them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmserve.engines.kv_transfer import KvGeometry, KvLayout
from llmserve.transfer.base import Region, Spans

Bytes = npt.NDArray[np.uint8]


def prompt_content(rng: np.random.Generator, layers: int, tokens: int, heads: int, cell: int) -> Bytes:
    return rng.integers(0, 256, (layers, tokens, heads, cell), np.uint8)


class ShapedMemory:
    """Blocks of random bytes. Layers alike, and parts given."""

    def __init__(self, geometry: KvGeometry, blocks: int, rng: np.random.Generator) -> None:
        self.geometry = geometry
        size = geometry.block_bytes[0]
        self.layers = rng.integers(0, 256, (len(geometry.block_bytes), blocks, size), np.uint8)
        regions = tuple(Region(layer.ctypes.data, layer.nbytes) for layer in self.layers)
        self.layout = KvLayout(regions, geometry)

    def store(self, content: Bytes, block_ids: Sequence[int]) -> None:
        """The heads of this rank of a whole prompt; the rest of its last block stays as it is."""
        geometry = self.geometry
        held = content[:, :, geometry.shard.heads.start : geometry.shard.heads.stop]
        whole = self.load(block_ids)
        whole[:, : held.shape[1]] = held
        kernel = geometry.kernel_tokens
        for layer, block in np.ndindex(len(self.layers), len(block_ids)):
            first = block * geometry.block_size_tokens
            pieces = [
                self._pack(whole[layer, start : start + kernel])
                for start in range(first, first + geometry.block_size_tokens, kernel)
            ]
            self.layers[layer, block_ids[block]] = np.concatenate(pieces)

    def load(self, block_ids: Sequence[int]) -> Bytes:
        """All tokens of blocks, [layers, tokens, heads of this rank, cell]."""
        layers = [
            np.concatenate(
                [
                    self._unpack(piece)
                    for block in block_ids
                    for piece in np.split(layer[block], self.geometry.kernel_blocks)
                ]
            )
            for layer in self.layers
        ]
        return np.stack(layers)

    def _pack(self, cells: Bytes) -> Bytes:
        """[tokens, heads, cell] of a kernel block as they lie in memory."""
        if self.geometry.heads_inside:
            return cells.ravel()
        return np.concatenate([self._pack_head(cells[:, head]) for head in range(cells.shape[1])])

    def _pack_head(self, cells: Bytes) -> Bytes:
        found, start = [], 0
        for part in self.geometry.parts:
            width = part.group_bytes // part.group_tokens
            own = cells[:, start : start + part.rows * width]
            groups = own.reshape(-1, part.group_tokens, part.rows, width)
            found.append(groups.transpose(2, 0, 3, 1).ravel())  # tokens of a group interleave
            start += part.rows * width
        return np.concatenate(found)

    def _unpack(self, piece: Bytes) -> Bytes:
        kernel, heads = self.geometry.kernel_tokens, self.geometry.held_heads
        if self.geometry.heads_inside:
            return piece.reshape(kernel, heads, -1)
        return np.stack([self._unpack_head(head) for head in np.split(piece, heads)], axis=1)

    def _unpack_head(self, piece: Bytes) -> Bytes:
        kernel, found, start = self.geometry.kernel_tokens, [], 0
        for part in self.geometry.parts:
            width = part.group_bytes // part.group_tokens
            size = kernel * part.rows * width
            shape = (part.rows, kernel // part.group_tokens, width, part.group_tokens)
            own = piece[start : start + size].reshape(shape).transpose(1, 3, 0, 2)
            found.append(own.reshape(kernel, part.rows * width))
            start += size
        return np.concatenate(found, axis=1)

    def bytes_at(self, spans: Spans) -> npt.NDArray[np.int64]:
        """Positions in `layers.ravel()` of every byte of the spans, in order."""
        starts = spans.regions * self.layers[0].size + spans.offsets
        before = np.cumsum(spans.lengths) - spans.lengths
        found: npt.NDArray[np.int64] = np.repeat(starts - before, spans.lengths)
        return found + np.arange(spans.total_bytes)
