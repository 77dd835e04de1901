"""Which KV heads a tensor-parallel rank has, and which ranks of a peer it fetches them from."""

from dataclasses import dataclass, replace

from llmserve.core.errors import TransferError


@dataclass(frozen=True, slots=True)
class HeadShard:
    """The KV heads of one rank, cut as vLLM cuts them: kv_heads / tensor_parallel each; where there are more
    ranks than heads, one each, which tensor_parallel / kv_heads neighbours replicate.

    kv_heads: of the whole model. Errors: TransferError when the heads do not divide so."""

    kv_heads: int = 1
    tensor_parallel: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if min(self.kv_heads, self.tensor_parallel) < 1 or not 0 <= self.rank < self.tensor_parallel:
            raise TransferError(
                f"no rank {self.rank} of {self.tensor_parallel} with {self.kv_heads} KV heads"
            )
        if self.kv_heads % self.tensor_parallel and self.tensor_parallel % self.kv_heads:
            raise TransferError(f"{self.kv_heads} KV heads cannot be cut into {self.tensor_parallel} ranks")

    @property
    def heads(self) -> range:
        """Numbered over the model."""
        held = max(1, self.kv_heads // self.tensor_parallel)
        first = self.rank // self.replicas * held
        return range(first, first + held)

    @property
    def replicas(self) -> int:
        """How many ranks have the same heads."""
        return max(1, self.tensor_parallel // self.kv_heads)

    @property
    def replica(self) -> int:
        """Which of them this is."""
        return self.rank % self.replicas


@dataclass(frozen=True, slots=True)
class Source:
    """A rank of the peer. heads: to be read from it, numbered over the model; empty when only its lease has
    to be released. readers: how many of our ranks release that lease; it ends with the last of them."""

    rank: int
    heads: range
    readers: int


def sources(mine: HeadShard, tensor_parallel: int) -> tuple[Source, ...]:
    """The ranks of a peer of this tensor-parallel size that a rank of ours deals with. Together they cover
    its heads once; over all our ranks every rank of the peer occurs, so that no lease is left to expire.
    Errors: TransferError when the peer's heads do not divide."""
    theirs = (replace(mine, tensor_parallel=tensor_parallel, rank=rank) for rank in range(tensor_parallel))
    return tuple(
        Source(peer.rank, _read(mine, peer), _readers(mine, peer)) for peer in theirs if _deals(mine, peer)
    )


def _deals(mine: HeadShard, peer: HeadShard) -> bool:
    return bool(_read(mine, peer)) or _only_releases(mine, peer)


def _read(mine: HeadShard, peer: HeadShard) -> range:
    """Our replicas spread over theirs."""
    if mine.replica % peer.replicas != peer.replica:
        return range(0)
    return _common(mine, peer)


def _only_releases(mine: HeadShard, peer: HeadShard) -> bool:
    """A replica of the peer beyond the number of ours, which nobody reads."""
    return mine.replica == peer.replica % mine.replicas and bool(_common(mine, peer))


def _readers(mine: HeadShard, peer: HeadShard) -> int:
    ranks = (replace(mine, rank=rank) for rank in range(mine.tensor_parallel))
    return sum(_deals(rank, peer) for rank in ranks)


def _common(mine: HeadShard, peer: HeadShard) -> range:
    first, end = max(mine.heads.start, peer.heads.start), min(mine.heads.stop, peer.heads.stop)
    return range(first, max(first, end))
