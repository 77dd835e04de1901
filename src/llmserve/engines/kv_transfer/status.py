"""What one process counts of its hand-overs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from llmserve.core.errors import TransferError
from llmserve.core.request import PairStatus


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
