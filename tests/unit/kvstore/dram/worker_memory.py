"""The memory of a worker in tests: layers in regions of their own, blocks back to back in each."""

import mmap

import numpy as np
import xxhash

from llmserve.transfer.base import Region, Spans

LAYERS, BLOCKS, PIECE_BYTES = 6, 4, 12 << 10
BLOCK_BYTES = LAYERS * PIECE_BYTES


class WorkerMemory:
    """order: `even`, the layers lie equally far apart; `backwards`, too, the last one first; `uneven`."""

    def __init__(self, seed: int, order: str = "even") -> None:
        gap = mmap.PAGESIZE if order == "uneven" else 0
        sizes = [BLOCKS * PIECE_BYTES + (layer % 3) * gap for layer in range(LAYERS)]
        self._memory = np.random.default_rng(seed).integers(0, 256, sum(sizes), np.uint8)
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        if order == "backwards":
            starts.reverse()
        self.layers = [self._memory[s : s + BLOCKS * PIECE_BYTES].reshape(BLOCKS, -1) for s in starts]
        self.regions = [Region(layer.ctypes.data, layer.nbytes) for layer in self.layers]

    def spans(self, *blocks: int) -> Spans:
        """All layers of the first block, then of the second, and so on."""
        regions = np.tile(np.arange(LAYERS), len(blocks))
        offsets = np.repeat(np.array(blocks, np.int64) * PIECE_BYTES, LAYERS)
        return Spans(regions, offsets, np.full_like(offsets, PIECE_BYTES))

    def block(self, number: int) -> bytes:
        return b"".join(layer[number].tobytes() for layer in self.layers)

    def checksum(self, number: int) -> int:
        return xxhash.xxh3_64_intdigest(self.block(number))
