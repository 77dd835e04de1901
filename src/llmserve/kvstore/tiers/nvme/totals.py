"""What an NVMe tier has done since it was opened, for metrics."""

from dataclasses import dataclass, field

from llmserve.kvstore.tiers.base import TierOutcome


@dataclass(slots=True)
class Totals:
    """written, read: blobs by outcome; bytes: of their data when DONE. copied: by compaction."""

    written: dict[TierOutcome, int] = field(default_factory=lambda: dict.fromkeys(TierOutcome, 0))
    read: dict[TierOutcome, int] = field(default_factory=lambda: dict.fromkeys(TierOutcome, 0))
    written_bytes: int = 0
    read_bytes: int = 0
    corrupt: int = 0  # found by readers or by compaction
    copied_bytes: int = 0
    dropped_segments: int = 0
    recovered_blobs: int = 0
    recovery_seconds: float = 0.0
