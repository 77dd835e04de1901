"""What one process counts of its hand-overs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from llmserve.core.errors import TransferError
from llmserve.core.request import PairStatus


@dataclass(slots=True)
class TransportCounters:
    """Of the pulls made here. seconds: from the first byte asked for to the last one in memory."""

    pulls: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failures: int = 0


@dataclass(slots=True)
class TransferCounters:
    """Totals since the start. Written by the hand-over thread, read by any."""

    by_transport: dict[str, TransportCounters] = field(default_factory=dict)
    last_transport: str = ""
    failed_pulls: int = 0  # pulls that ended without data, whatever the transport

    def of(self, transport: str) -> TransportCounters:
        return self.by_transport.setdefault(transport, TransportCounters())

    def count_pull(self, transport: str, size_bytes: int, seconds: float) -> None:
        counters = self.of(transport)
        counters.pulls += 1
        counters.bytes += size_bytes
        counters.seconds += seconds
        self.last_transport = transport

    @property
    def transferred_bytes(self) -> int:
        return sum(counters.bytes for counters in self.by_transport.values())

    @property
    def transfer_failures(self) -> int:
        """Failed attempts on a transport, and pulls that failed before or after one."""
        return self.failed_pulls + sum(counters.failures for counters in self.by_transport.values())


@dataclass(frozen=True, slots=True)
class HandoverStatus:
    """The answer to `status` on the side channel. Lease counts are of what is held for others,
    transfer counts of what was pulled from others. pairs: the matrix, in answers of the side channel."""

    worker_id: str
    epoch: int
    open_leases: int
    leased_blocks: int
    orphan_blocks: int
    granted_leases: int
    released_leases: int
    expired_leases: int
    transferred_bytes: int
    transfer_failures: int
    last_transport: str
    transports: tuple[str, ...]
    pairs: tuple[PairStatus, ...] = ()

    def to_message(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "HandoverStatus":
        """Errors: TransferError."""
        try:
            values = {f.name: message[f.name] for f in fields(cls)}
            pairs = tuple(PairStatus(**row) for row in values["pairs"])
            return cls(**{**values, "transports": tuple(values["transports"]), "pairs": pairs})
        except (KeyError, TypeError) as error:
            raise TransferError(f"side channel: malformed status: {error!r}") from error
