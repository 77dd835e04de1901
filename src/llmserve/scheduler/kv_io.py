"""The budget of KV that engines hand over, and rates as time spent. Pure."""

from collections.abc import Mapping, Set

from llmserve.core.clock import Clock
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.budgets import NO_WAIT, Wait
from llmserve.scheduler.request import QueuedRequest

# Sums of floats: a client that returns at its Retry-After must be let in.
_INSTANT_SECONDS = 1e-6
_MANY_NAMES = 1024


class KvIoBudget:
    """KV bytes that prefill hands over, per second. A request fits once everything before it has had its
    time on the link, so a large request is not overtaken, and none is too large. One of a model that hands
    nothing over always fits."""

    name = "KV I/O"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._bytes_per_second: float | None = None
        self._bytes_per_token: Mapping[str, float] = {}
        self._spend = Spend()
        self._held: set[RequestId] = set()

    def __repr__(self) -> str:
        return f"<KvIoBudget {self._bytes_per_second} bytes/s>"

    @property
    def used_ratio(self) -> float | None:
        """Used share of what may begin at once; None: there is no limit."""
        if self._bytes_per_second is None:
            return None
        return self._spend.used_seconds(self._clock.now()) / Spend.burst_seconds

    def set_limit(self, bytes_per_second: float | None, bytes_per_token: Mapping[str, float]) -> None:
        """bytes_per_second: None: there is no limit. bytes_per_token: of models that hand over."""
        self._bytes_per_second, self._bytes_per_token = bytes_per_second, bytes_per_token

    def fits(self, request: QueuedRequest) -> bool:
        return self.wait(request, 0).seconds == 0.0

    def full_for_all(self, request: QueuedRequest) -> bool:
        """Models that hand nothing over have room, and every request of the others waits for the link."""
        return False

    def held_ratio(self, model: str) -> float:
        """The time on the link is nobody's."""
        return 0.0

    def refusal(self, request: QueuedRequest) -> str:
        return ""

    def reserve(self, request: QueuedRequest) -> None:
        assert request.request_id not in self._held, "reserved twice"
        self._held.add(request.request_id)
        if self._bytes_per_second is not None and not request.charged:
            self._spend.take(self._seconds(request), self._clock.now())

    def correct(self, request: QueuedRequest, output_tokens: int) -> None:
        """Only the prompt is handed over."""

    def release(self, request: QueuedRequest, output_tokens: int) -> None:
        """The time on the link is not given back: the bytes have moved."""
        self._held.remove(request.request_id)

    def snapshot(self) -> float | None:
        """Seconds of the rate that are spent ahead of now; None: all is saved up that may be."""
        return self._spend.ahead_seconds(self._clock.now())

    def restore(self, ahead_seconds: float | None) -> None:
        self._spend = Spend.restored(ahead_seconds, self._clock.now())

    def wait(self, request: QueuedRequest, ahead: int) -> Wait:
        if self._bytes_per_second is None or not self._bytes_per_token.get(request.model):
            return NO_WAIT
        return Wait(self._spend.wait_seconds(self._clock.now()), sure=True)

    def check_integrity(self, running: Set[RequestId]) -> None:
        assert self._held == running, self

    def _seconds(self, request: QueuedRequest) -> float:
        assert self._bytes_per_second is not None
        each = self._bytes_per_token.get(request.model, 0.0)
        return request.prompt_tokens * each / self._bytes_per_second


class Spend:
    """A rate as time spent: an amount that takes s seconds at the rate is spent for s seconds. At rest it
    saves up burst_seconds, so in any t seconds at most t + burst_seconds begin."""

    burst_seconds = 1.0

    def __init__(self) -> None:
        self._until = float("-inf")

    @classmethod
    def restored(cls, ahead_seconds: float | None, now: float) -> "Spend":
        """Inverse of ahead_seconds."""
        spend = cls()
        if ahead_seconds is not None:
            spend._until = now + ahead_seconds
        return spend

    def ahead_seconds(self, now: float) -> float | None:
        """Seconds spent ahead of now; None: all is saved up that may be, as at the start."""
        ahead = self._until - now
        return ahead if ahead > -self.burst_seconds else None

    def take(self, seconds: float, now: float) -> None:
        self._until = max(self._until, now - self.burst_seconds) + seconds

    def give_back(self, seconds: float) -> None:
        """A negative amount takes more, as part of what was taken before."""
        self._until -= seconds

    def wait_seconds(self, now: float) -> float:
        """Seconds until any amount may be taken; 0: now."""
        left = self._until - now
        return left if left > _INSTANT_SECONDS else 0.0

    def used_seconds(self, now: float) -> float:
        """Seconds used of those that are saved up at rest, and beyond them."""
        return max(0.0, self._until - now + self.burst_seconds)


class Spends:
    """What each tenant, or each key, has spent of one rate. An issuer of tokens may name any number of them,
    so those that have saved up all that may be are forgotten when there are twice as many as after the last
    time."""

    def __init__(self) -> None:
        self._spends: dict[str, Spend] = {}
        self._most = _MANY_NAMES

    def __len__(self) -> int:
        return len(self._spends)

    def wait_seconds(self, name: str, now: float) -> float:
        spend = self._spends.get(name)
        return spend.wait_seconds(now) if spend else 0.0

    def take(self, name: str, seconds: float, now: float) -> None:
        if name not in self._spends and len(self._spends) >= self._most:
            self.restore(self.ahead_seconds(now), now)
        self._spends.setdefault(name, Spend()).take(seconds, now)

    def take_more(self, name: str, seconds: float, now: float) -> None:
        """As part of what was taken before. A negative number gives back."""
        if spend := self._spends.get(name):
            spend.give_back(-seconds)
        elif seconds > 0:
            self.take(name, seconds, now)

    def ahead_seconds(self, now: float) -> dict[TenantId, float]:
        """Seconds that each has spent ahead of now. Those that have saved up all are left out."""
        ahead = {TenantId(name): spend.ahead_seconds(now) for name, spend in self._spends.items()}
        return {name: seconds for name, seconds in ahead.items() if seconds is not None}

    def restore(self, ahead_seconds: Mapping[TenantId, float], now: float) -> None:
        """Inverse of ahead_seconds."""
        self._spends = {name: Spend.restored(ahead, now) for name, ahead in ahead_seconds.items()}
        self._most = max(_MANY_NAMES, 2 * len(self._spends))
