"""How many requests may be placed again after a worker failed them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """share: retries for each request that starts. burst: retries at once, for the loss of a worker."""

    share: float = 0.2
    burst: int = 100


class RetryBudget:
    """A bucket that requests fill and retries empty: the work that failures cause stays a share of the work
    there is, so that trouble does not feed on itself. Of one apiserver; pure."""

    def __init__(self, limits: RetryLimits) -> None:
        self._limits = limits
        self._left = float(limits.burst)

    def __repr__(self) -> str:
        return f"<RetryBudget {self._left:.1f} of {self._limits.burst}>"

    @property
    def left(self) -> int:
        """Retries that may be made now."""
        return int(self._left)

    def started(self) -> None:
        """A request began."""
        self._left = min(float(self._limits.burst), self._left + self._limits.share)

    def take(self) -> bool:
        """One retry; False: not now."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
