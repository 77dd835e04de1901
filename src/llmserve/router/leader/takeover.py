"""What another router's term before this one means for this one. Pure."""

from llmserve.core.clock import Clock
from llmserve.core.ids import ApiserverId


class Takeover:
    """Before take_over, and where there was no other router, it means nothing."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._settled_at = float("-inf")
        self._inherits = False
        self._told_by: set[ApiserverId] = set()

    def take_over(self, settle_seconds: float, *, inherits: bool) -> None:
        """Who ran and waited under the other router is to be counted for so long, before anything is
        placed. inherits: its snapshot was there."""
        self._settled_at = self._clock.now() + settle_seconds
        self._inherits = inherits

    @property
    def settling(self) -> bool:
        return self._clock.now() < self._settled_at

    def settled_at(self) -> float | None:
        """None: it is."""
        return self._settled_at if self.settling else None

    def already_charged(self, apiserver_id: ApiserverId) -> bool:
        """Of what this apiserver holds as its session opens; called once for each session. What it held under
        the other router is in the snapshot. What it comes back with later is not."""
        first = apiserver_id not in self._told_by
        self._told_by.add(apiserver_id)
        return self._inherits and first
