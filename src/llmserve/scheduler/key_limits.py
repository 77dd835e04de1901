"""The limits of a client's key in the whole cluster, and what each key uses of them. Pure.

A request over a limit of its key is refused at once, with the time after which it would be let in. It does
not wait, as one over a budget of its tenant does: other keys of the tenant are not to stand behind it.
"""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass

from llmserve.core.clock import Clock
from llmserve.core.errors import Overloaded
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.kv_io import Spends
from llmserve.scheduler.rate import ServiceRate
from llmserve.scheduler.request import QueuedRequest

# The names of the two rates in snapshots, beside those of the tenants' budgets.
KEY_REQUESTS = "the key's requests per second"
KEY_TOKENS = "the key's tokens per second"
_LONGEST_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """key: the id by which all apiservers and routers know the key; empty: there is no key. The others are
    None where there is no limit."""

    key: str = ""
    requests_per_second: float | None = None
    tokens_per_second: float | None = None
    max_requests_in_flight: int | None = None

    def __bool__(self) -> bool:
        """Returns whether there is any limit to hold."""
        limits = (self.requests_per_second, self.tokens_per_second, self.max_requests_in_flight)
        return bool(self.key) and any(limit is not None for limit in limits)


NO_LIMITS = KeyLimits()


@dataclass(slots=True)
class _KeyHold:
    """What a request uses of its key's limits. tokens: those that were counted so far."""

    limits: KeyLimits
    request: QueuedRequest
    tokens: int


class KeyBudgets:
    """What requests use of the limits of their keys, from Admit to their end, whether they wait or run. Each
    choice counts as a request. Tokens are counted as they are used: the prompt's at once, those of the answer
    when they are reported. A request whose key has no limits is not counted."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._holds: dict[RequestId, _KeyHold] = {}
        self._count: Counter[str] = Counter()
        self._ends: dict[str, ServiceRate] = {}  # of keys that have something in flight
        self._requests, self._tokens = Spends(), Spends()

    def __repr__(self) -> str:
        return f"<KeyBudgets {dict(self._count)}>"

    def refusal(self, limits: KeyLimits, choices: int) -> Overloaded | None:
        """Returns why a request with this many choices may not come now; None: it may."""
        now, most = self._clock.now(), limits.max_requests_in_flight
        if most is not None and self._count[limits.key] + choices > most:
            ends = self._ends.get(limits.key)  # none when nothing of the key is here
            wait = ends.wait_seconds(choices, now, _LONGEST_RETRY_SECONDS) if ends else _LONGEST_RETRY_SECONDS
            text = f"the key has {self._count[limits.key]} requests in flight, and may have {most}"
            return Overloaded(text, retry_after_seconds=wait)
        for name, spends, rate in (
            ("requests", self._requests, limits.requests_per_second),
            ("tokens", self._tokens, limits.tokens_per_second),
        ):
            if rate is not None and (wait := spends.wait_seconds(limits.key, now)):
                text = f"the key has used up its {rate:g} {name} per second"
                return Overloaded(text, retry_after_seconds=wait)
        return None

    def take(
        self, request: QueuedRequest, limits: KeyLimits, output_tokens: int = 0, *, charged: bool = False
    ) -> None:
        """Counts a request that came in. output_tokens: those of one that runs already. charged: its rates
        were charged before, as for one that comes again because its worker was lost."""
        if not limits:
            return
        assert request.request_id not in self._holds, "taken twice"
        now, key, tokens = self._clock.now(), limits.key, request.work_tokens(output_tokens)
        self._holds[request.request_id] = _KeyHold(limits, request, tokens)
        self._count[key] += request.choices
        if key not in self._ends:
            self._ends[key] = ServiceRate()
            self._ends[key].backlog(True, now)
        if charged:
            return
        if limits.requests_per_second is not None:
            self._requests.take(key, request.choices / limits.requests_per_second, now)
        if limits.tokens_per_second is not None:
            self._tokens.take(key, tokens / limits.tokens_per_second, now)

    def used(self, request_id: RequestId, output_tokens: int) -> None:
        """A request has generated this many tokens so far. Ignores one that is not counted."""
        hold = self._holds.get(request_id)
        if hold is None:
            return
        tokens = max(hold.tokens, hold.request.work_tokens(output_tokens))
        if hold.limits.tokens_per_second is not None:
            more = (tokens - hold.tokens) / hold.limits.tokens_per_second
            self._tokens.take(hold.limits.key, more, self._clock.now())
        hold.tokens = tokens

    def release(self, request_id: RequestId, output_tokens: int = 0) -> None:
        """A request is over, however it ended. Ignores one that is not counted."""
        self.used(request_id, output_tokens)
        hold = self._holds.pop(request_id, None)
        if hold is None:
            return
        key = hold.limits.key
        self._count[key] -= hold.request.choices
        self._ends[key].departed(self._clock.now(), hold.request.choices)
        if not self._count[key]:
            del self._count[key], self._ends[key]

    def snapshot(self) -> dict[str, dict[TenantId, float]]:
        """Seconds of each rate that each key has spent ahead; keys that have saved up all are left out. Keys
        stand where the tenants' budgets have tenants."""
        now = self._clock.now()
        return {
            KEY_REQUESTS: self._requests.ahead_seconds(now),
            KEY_TOKENS: self._tokens.ahead_seconds(now),
        }

    def restore(self, ahead_seconds: Mapping[str, Mapping[TenantId, float]]) -> None:
        """Inverse of snapshot."""
        now = self._clock.now()
        self._requests.restore(ahead_seconds.get(KEY_REQUESTS, {}), now)
        self._tokens.restore(ahead_seconds.get(KEY_TOKENS, {}), now)

    def check_integrity(self, known: Set[RequestId]) -> None:
        """known: requests that wait or run. Raises AssertionError when one is counted that is none of them,
        or what is counted differs from what they hold."""
        assert self._holds.keys() <= known, self
        counted = Counter[str]()
        for hold in self._holds.values():
            counted[hold.limits.key] += hold.request.choices
        assert self._count == counted, self
        assert self._ends.keys() == counted.keys(), self
