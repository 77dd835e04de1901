"""Where the layers of a KV cache lie in registered memory, found from the views that an engine shows of them.

vLLM keeps the KV of a rank in one allocation, whose axes have one of six orders (v1/kv_cache_layout.py): L
layer, B block, H head, N token, C content of one token and head. A layer is a view [B, H, N, C] of it. Pages
may be padded, and where B comes before L, or H before B, a block of a layer is not the neighbour of the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from llmserve.core.kv_params import Positive, Whole
from llmserve.transfer.base import Region

AXIS_ORDERS = ("LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")


@dataclass(frozen=True, slots=True)
class LayerPlacement:
    """Where one layer lies: its kernel block k begins `offset` + k * `block_stride` bytes into the region.
    head_stride: the bytes from one head of a kernel block to the next; 0 where heads lie back to back, or
    inside of the tokens."""

    region: Annotated[int, Meta(ge=0, lt=1 << 16)]
    offset: Whole
    block_stride: Positive
    head_stride: Whole = 0


@dataclass(frozen=True, slots=True)
class LayerView:
    """A view [B, H, N, C] of one layer. address: that of its first byte. strides: in bytes, as is
    content_bytes, the length of the last axis. allocation: the memory that holds it."""

    address: int
    shape: tuple[int, int, int]
    strides: tuple[int, int, int]
    content_bytes: int
    allocation: Region

    @property
    def kernel_block_bytes(self) -> int:
        """The bytes of a kernel block, without what lies between its heads or behind it."""
        _, heads, tokens = self.shape
        return heads * tokens * self.content_bytes

    @property
    def is_dense(self) -> bool:
        """Whether kernel blocks follow each other without gaps."""
        return self.strides[0] == self.kernel_block_bytes and not self.head_stride

    @property
    def head_stride(self) -> int:
        """As in LayerPlacement."""
        _, heads, tokens = self.shape
        back_to_back = self.strides[1] == tokens * self.content_bytes
        return 0 if heads == 1 or back_to_back or self._heads_inside else self.strides[1]

    @property
    def is_contiguous_inside(self) -> bool:
        """Whether the bytes of a kernel block lie in one piece."""
        _, heads, tokens = self.shape
        axes = [(tokens, self.strides[2]), (heads, self.strides[1])]
        extent = self.content_bytes
        for size, stride in sorted(axes, key=lambda axis: axis[1]):
            if size > 1 and stride != extent:
                return False
            extent *= size
        return True

    def obstacle(self, axes: str) -> str:
        """Reason why heads and tokens do not lie as the name of the layout says; empty when they do."""
        if axes not in AXIS_ORDERS:
            return f"{axes!r} is not one of {', '.join(AXIS_ORDERS)}"
        _, heads, tokens = self.shape
        if axes.index("N") < axes.index("H"):
            lies_so = self._steps(tokens, 2) == heads * self.content_bytes * (tokens > 1)
            lies_so &= self._steps(heads, 1) == self.content_bytes * (heads > 1)
        else:
            lies_so = self._steps(tokens, 2) == self.content_bytes * (tokens > 1)
            lies_so &= self._steps(heads, 1) >= tokens * self.content_bytes * (heads > 1)
        if lies_so and self.strides[0] > 0:
            return ""
        return f"a view {self.shape} of {self.content_bytes} bytes with strides {self.strides} is not {axes}"

    def _steps(self, size: int, axis: int) -> int:
        """The stride of an axis; 0 for one of a single step, whose stride means nothing."""
        return self.strides[axis] if size > 1 else 0

    @property
    def _heads_inside(self) -> bool:
        return self.shape[2] > 1 and self.strides[1] < self.strides[2]


def place(views: Sequence[LayerView]) -> tuple[tuple[Region, ...], tuple[LayerPlacement, ...]]:
    """Returns the memory to register and where each layer lies in it. Layers of the host without gaps are
    regions of their own, and need no placements: that is the only form that earlier versions know. Otherwise
    each allocation is one region, as that is one registration, and one mapping of a GPU's memory."""
    if all(view.allocation.memory.on_host and view.is_dense for view in views):
        sizes = [view.shape[0] * view.kernel_block_bytes for view in views]
        return tuple(Region(view.address, size) for view, size in zip(views, sizes, strict=True)), ()
    regions = tuple(dict.fromkeys(view.allocation for view in views))
    return regions, tuple(
        LayerPlacement(
            regions.index(view.allocation),
            view.address - view.allocation.address,
            view.strides[0],
            view.head_stride,
        )
        for view in views
    )
