"""What the object tier is told. No credentials: those are the environment's."""

import re
from dataclasses import dataclass, field

from llmserve.buckets.connect import BucketAddress
from llmserve.core.errors import StartFailed

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """With a request: it is tried so often; an attempt is given up after attempt_seconds, the whole after
    deadline_seconds. Pauses between attempts double from the first to the longest."""

    attempts: int
    attempt_seconds: float
    deadline_seconds: float
    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds of requests to the bucket. They are short for reads, whose caller waits and can recompute."""

    reads_in_flight: int = 16
    uploads_in_flight: int = 4  # each holds a pack in memory
    read: RetryPolicy = RetryPolicy(attempts=3, attempt_seconds=5.0, deadline_seconds=10.0)
    write: RetryPolicy = RetryPolicy(attempts=5, attempt_seconds=60.0, deadline_seconds=120.0)


@dataclass(frozen=True, slots=True)
class ObjectSettings:
    """url: `s3://bucket/prefix`, `gs://…`, `az://account/container/prefix`, `file:///directory`.
    owner: this kvmanager among those that share the url, and the same after a restart.
    endpoint, region: of an S3 server that is not AWS. A pack goes up when it has pack_bytes, or
    linger_seconds after its first blob; removals are written down removals_seconds later. Ranges reach
    over gaps up to gap_bytes, which costs less than a request, and up to range_bytes; a longer blob is read
    in several. compact_share: garbage in a pack that makes it worth a rewrite; pressed_share: when room is
    needed."""

    url: str
    owner: str
    capacity_bytes: int
    endpoint: str = ""
    region: str = ""
    pack_bytes: int = 64 << 20
    linger_seconds: float = 0.5
    removals_seconds: float = 1.0
    range_bytes: int = 8 << 20
    gap_bytes: int = 256 << 10
    compact_share: float = 0.5
    pressed_share: float = 0.1
    limits: RequestLimits = field(default_factory=RequestLimits)

    @property
    def address(self) -> BucketAddress:
        longest = max(self.limits.read.attempt_seconds, self.limits.write.attempt_seconds)
        return BucketAddress(self.url, self.endpoint, self.region, longest)

    @property
    def pack_limit_bytes(self) -> int:
        """A small tier has small packs: one of them is always kept free."""
        return min(self.pack_bytes, self.capacity_bytes // 8)

    @property
    def blob_capacity_bytes(self) -> int:
        """What blobs may take so that no write is FULL: rewriting finds room for them."""
        return int((self.capacity_bytes - 2 * self.pack_limit_bytes) * (1 - 2 * self.pressed_share))

    def __post_init__(self) -> None:
        if not _OWNER.fullmatch(self.owner):
            raise StartFailed(f"object tier: {self.owner!r} is no name for an owner: letters, digits, . _ -")
