"""What an NVMe tier is told."""

from dataclasses import dataclass
from pathlib import Path

from llmserve.kvstore.tiers.base import ALIGNMENT_BYTES

_MIB = 1 << 20
_SMALLEST_BYTES = 16 * _MIB
_LARGEST_BYTES = 4096 * _MIB  # what a crash leaves unsealed is read within a second or two


@dataclass(frozen=True, slots=True)
class NvmeSettings:
    """directory: its own; made when it is not there. segment_bytes: 0 for a size that makes about 128 of
    them, each an open file. compact_below: a segment with a smaller share of live bytes is copied and
    dropped without need; compact_at_need_below: when a write has no room."""

    directory: Path
    capacity_bytes: int
    segment_bytes: int = 0
    durable: bool = False
    read_threads: int = 4
    write_threads: int = 6
    compact_below: float = 0.4
    compact_at_need_below: float = 0.75

    @property
    def segment_size_bytes(self) -> int:
        size = self.segment_bytes or self._default_segment_bytes
        return size // ALIGNMENT_BYTES * ALIGNMENT_BYTES

    @property
    def blob_capacity_bytes(self) -> int:
        """What blobs may take, with their pages, so that no write is FULL: copying finds room for them."""
        return max(0, int((self.capacity_bytes - 2 * self.segment_size_bytes) * self.compact_at_need_below))

    @property
    def _default_segment_bytes(self) -> int:
        small = min(_SMALLEST_BYTES, self.capacity_bytes // 8)
        return min(max(small, self.capacity_bytes // 128), _LARGEST_BYTES)
