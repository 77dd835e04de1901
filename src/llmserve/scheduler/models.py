"""What the models of a cluster have of it: their engines, and their shares of the budgets. Pure."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

_NOBODY: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the registered workers of a model have. kv_bytes_per_token: 0: unknown. hands_over: prefill and
    decode are different workers. widest_engine: most requests that one engine runs at once; 0: unknown."""

    requests: int = 0
    kv_bytes_per_token: float = 0.0
    hands_over: bool = False
    widest_engine: int = 0


NO_CAPACITY = Capacity()


class ModelShares:
    """The part of a limit that the requests of a model may hold: all of it, but only its share while requests
    of other models wait for room. shares: of models; others have 1. waiting: returns the models whose
    requests do."""

    def __init__(self) -> None:
        self.shares: Mapping[str, float] = {}
        self.waiting: Callable[[], Set[str]] = lambda: _NOBODY

    def part(self, model: str) -> float:
        share = self.shares.get(model)
        return share if share is not None and self.waiting() - {model} else 1.0

    def share(self, model: str) -> float:
        return self.shares.get(model, 1.0)
