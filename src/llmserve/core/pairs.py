"""What a worker knows of one transport to one peer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PairStatus:
    """A row of the matrix: this worker fetches from `peer` over `transport`.

    small_seconds and bytes_per_second are those of the last probe that worked (0: none did);
    transfers, bytes and seconds count what requests moved; failures count probes too. breaker is
    closed, open or half-open, and reason why it opened. chosen: the next request goes this way.
    """

    peer: str
    transport: str
    chosen: bool
    breaker: str
    reason: str
    small_seconds: float
    bytes_per_second: float
    transfers: int
    bytes: int
    seconds: float
    failures: int
