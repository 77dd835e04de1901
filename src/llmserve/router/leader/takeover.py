"""What the former leader's term means for this one. Pure."""

from llmserve.core.clock import Clock
from llmserve.core.ids import ApiserverId


class Takeover:
    """Does nothing before take_over, or when there was no former leader."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._settled_at = float("-inf")
        self._inherits = False
        self._seen: set[ApiserverId] = set()

    def take_over(self, settle_seconds: float, *, inherits: bool) -> None:
        """Nothing is placed for settle_seconds, so that requests of the former leader are counted first.
        inherits: its snapshot was found."""
        self._settled_at = self._clock.now() + settle_seconds
        self._inherits = inherits

    @property
    def settling(self) -> bool:
        return self._clock.now() < self._settled_at

    def settled_at(self) -> float | None:
        """None: it has settled."""
        return self._settled_at if self.settling else None

    def already_charged(self, apiserver_id: ApiserverId) -> bool:
        """Whether the snapshot has charged the requests that this apiserver holds as its session opens.
        Called once for each session: only an apiserver's first session can hold requests of the former
        leader."""
        first = apiserver_id not in self._seen
        self._seen.add(apiserver_id)
        return self._inherits and first
