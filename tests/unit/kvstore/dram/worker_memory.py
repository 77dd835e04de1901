"""The memory of a worker in tests: layers in regions of their own, blocks back to back in each."""

import mmap

import numpy as np
import xxhash
from numpy.lib.stride_tricks import as_strided

from llmserve.transfer.base import Region, Spans
from llmserve.transfer.devices.fake import FakeDevice

LAYERS, BLOCKS, PIECE_BYTES = 6, 4, 12 << 10
BLOCK_BYTES = LAYERS * PIECE_BYTES


ORDERS = ("even", "backwards", "uneven", "padded", "packed")


class WorkerMemory:
    """order: `even`, the layers lie equally far apart; `backwards`, too, the last one first; `uneven`;
    `padded`, with a gap after each block of a layer; `packed`, all layers of a block side by side. device:
    has the memory; None: the host has it. layers: as kernels see them, shape [BLOCKS, PIECE_BYTES] each."""

    def __init__(self, seed: int, order: str = "even", device: FakeDevice | None = None) -> None:
        gap = mmap.PAGESIZE if order == "uneven" else 0
        self._step = {"padded": PIECE_BYTES + 256, "packed": BLOCK_BYTES}.get(order, PIECE_BYTES)
        sizes = [BLOCKS * self._step + (layer % 3) * gap for layer in range(LAYERS)]
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        if order == "packed":
            starts = [layer * PIECE_BYTES for layer in range(LAYERS)]
        if order == "backwards":
            starts.reverse()
        self._memory = np.empty(sum(sizes), np.uint8)
        whole = Region(self._memory.ctypes.data, len(self._memory))
        if device is not None:
            whole = device.allocate(len(self._memory))
            self._memory = device.view(whole)
        self._memory[:] = np.random.default_rng(seed).integers(0, 256, len(self._memory), np.uint8)
        length = (BLOCKS - 1) * self._step + PIECE_BYTES
        self.layers = [as_strided(self._memory[s:], (BLOCKS, PIECE_BYTES), (self._step, 1)) for s in starts]
        self.regions = [Region(whole.address + start, length, whole.memory) for start in starts]

    def spans(self, *blocks: int) -> Spans:
        """All layers of the first block, then of the second, and so on."""
        regions = np.tile(np.arange(LAYERS), len(blocks))
        offsets = np.repeat(np.array(blocks, np.int64) * self._step, LAYERS)
        return Spans(regions, offsets, np.full_like(offsets, PIECE_BYTES))

    def block(self, number: int) -> bytes:
        return b"".join(layer[number].tobytes() for layer in self.layers)

    def checksum(self, number: int) -> int:
        return xxhash.xxh3_64_intdigest(self.block(number))
