"""Workers as each other's source of KV, and what one knows of its ways to another."""

from dataclasses import dataclass

from llmserve.core.ids import WorkerId


@dataclass(frozen=True, slots=True)
class KvPeer:
    """A worker to fetch from. endpoints: "host:port" of the side channel of each tensor-parallel rank."""

    worker_id: WorkerId
    epoch: int
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PairStatus:
    """A row of the matrix: this worker fetches from `peer` over `transport`.

    small_seconds and bytes_per_second are those of the last probe that worked (0: none did);
    transfers, bytes and seconds count what requests moved; failures count probes too. breaker is
    closed, open or half-open, and reason why it opened. chosen: the next request goes this way. A peer
    that cannot be reached, or does not fit, has one row: breaker "refused", without a transport. A transport
    that cannot be used on this machine has one: breaker "unavailable", without a peer.
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
