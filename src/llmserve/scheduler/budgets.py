"""Budgets of the whole cluster: what dispatched requests hold, and how much there is."""

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Protocol

from llmserve.core.clock import Clock
from llmserve.core.ids import RequestId
from llmserve.scheduler.rate import ServiceRate
from llmserve.scheduler.request import QueuedRequest

# Sums of floats: a client that returns at its Retry-After must be let in.
_INSTANT_SECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class Wait:
    """seconds: time until a request fits; 0: nothing is known. sure: the passing of time alone does it;
    otherwise it is an estimate from how fast requests ended."""

    seconds: float
    sure: bool = False


NO_WAIT = Wait(0.0)


class Budget(Protocol):
    """A request is dispatched when every budget fits. Each reserve is matched by one release, however the
    request ends; correct may come any number of times between them."""

    name: str  # what a refusal gives as its reason

    def fits(self, request: QueuedRequest) -> bool: ...

    def refusal(self, request: QueuedRequest) -> str:
        """Why the request can never fit, for people; empty: it can."""

    def reserve(self, request: QueuedRequest) -> None:
        """Counts the request, past the limit if need be: a request that runs already is adopted this way."""

    def correct(self, request: QueuedRequest, output_tokens: int) -> None:
        """The request has generated this many tokens so far."""

    def release(self, request: QueuedRequest, output_tokens: int) -> None:
        """The request is over, and has generated this many tokens."""

    def wait(self, request: QueuedRequest, ahead: int) -> Wait:
        """Time until the request fits, when this many requests like it, of its tenant, come first."""

    def check_integrity(self, running: Set[RequestId]) -> None:
        """Raises AssertionError when it does not hold exactly what these requests hold."""


class RequestBudget:
    """The number of requests in flight, over the whole cluster; each choice counts as one."""

    name = "requests in flight"

    def __init__(self, limit_requests: int) -> None:
        self.limit_requests = limit_requests
        self._most_choices, self._setting = 0, ""
        self._held: dict[RequestId, int] = {}
        self.in_flight = 0

    def __repr__(self) -> str:
        return f"<RequestBudget {self.in_flight} of {self.limit_requests}>"

    @property
    def used_ratio(self) -> float | None:
        """None while no worker could run anything."""
        return self.in_flight / self.limit_requests if self.limit_requests else None

    def set_limit(self, limit_requests: int, most_choices: int = 0, setting: str = "") -> None:
        """A smaller limit takes nothing back: dispatch waits until enough requests have ended.
        most_choices: most of one request, by `setting` of the manifest; 0: unknown."""
        self.limit_requests = limit_requests
        self._most_choices, self._setting = most_choices, setting

    def fits(self, request: QueuedRequest) -> bool:
        return self.in_flight + request.choices <= self.limit_requests

    def refusal(self, request: QueuedRequest) -> str:
        """A limit of 0 lasts only until a worker registers."""
        return choices_refusal(request, self._most_choices, self._setting)

    def reserve(self, request: QueuedRequest) -> None:
        assert request.request_id not in self._held, "reserved twice"
        self._held[request.request_id] = request.choices
        self.in_flight += request.choices

    def correct(self, request: QueuedRequest, output_tokens: int) -> None:
        """Tokens do not change the number of requests."""

    def release(self, request: QueuedRequest, output_tokens: int) -> None:
        self.in_flight -= self._held.pop(request.request_id)

    def wait(self, request: QueuedRequest, ahead: int) -> Wait:
        return NO_WAIT  # the queue itself measures how fast requests end

    def check_integrity(self, running: Set[RequestId]) -> None:
        assert self._held.keys() == running, self
        assert self.in_flight == sum(self._held.values()), self


def choices_refusal(request: QueuedRequest, most: int, setting: str) -> str:
    """Why a request has too many choices, which all run at the same time; empty: it has not. most 0:
    unknown."""
    if not 0 < most < request.choices:
        return ""
    return f"n: the {request.choices} choices of a request run side by side, and {setting} allows {most}"


class TokenBudget:
    """Tokens over the whole cluster. tokens_of(request, output_tokens): tokens that a request holds when it
    has generated output_tokens; at dispatch these are the expected ones. setting: name of the limit in the
    manifest. limit_tokens None: no limit."""

    def __init__(
        self, clock: Clock, name: str, setting: str, tokens_of: Callable[[QueuedRequest, int], int]
    ) -> None:
        self.name = name
        self.limit_tokens: int | None = None
        self.in_flight_tokens = 0
        self._clock = clock
        self._setting = setting
        self._tokens_of = tokens_of
        self._held: dict[RequestId, int] = {}
        self._rate = ServiceRate()

    def __repr__(self) -> str:
        return f"<TokenBudget {self.name}: {self.in_flight_tokens} of {self.limit_tokens}>"

    @property
    def used_ratio(self) -> float | None:
        """None: there is no limit."""
        return self.in_flight_tokens / self.limit_tokens if self.limit_tokens else None

    def set_limit(self, limit_tokens: int | None) -> None:
        """A smaller limit takes nothing back."""
        self.limit_tokens = limit_tokens

    def fits(self, request: QueuedRequest) -> bool:
        return self.limit_tokens is None or self.in_flight_tokens + self._wanted(request) <= self.limit_tokens

    def refusal(self, request: QueuedRequest) -> str:
        wanted = self._wanted(request)
        if self.limit_tokens is None or wanted <= self.limit_tokens:
            return ""
        why = f" for its {request.choices} choices (n)" if request.choices > 1 else ""
        return f"{self.name}: the request needs {wanted}{why}, and {self._setting} allows {self.limit_tokens}"

    def reserve(self, request: QueuedRequest) -> None:
        assert request.request_id not in self._held, "reserved twice"
        if not self._held:
            self._rate.backlog(True, self._clock.now())
        self._set(request, self._wanted(request))

    def correct(self, request: QueuedRequest, output_tokens: int) -> None:
        """Takes more when the answer is longer than expected. Gives nothing back: the request is not over."""
        tokens = self._tokens_of(request, output_tokens)
        self._set(request, max(tokens, self._held[request.request_id]))

    def release(self, request: QueuedRequest, output_tokens: int) -> None:
        tokens = self._held.pop(request.request_id)
        self.in_flight_tokens -= tokens
        self._rate.departed(self._clock.now(), tokens)
        if not self._held:
            self._rate.backlog(False, self._clock.now())

    def wait(self, request: QueuedRequest, ahead: int) -> Wait:
        if self.fits(request) or self.limit_tokens is None:
            return NO_WAIT
        missing = self.in_flight_tokens + self._wanted(request) - self.limit_tokens
        return Wait(self._rate.wait_seconds(missing, self._clock.now(), float("inf")))

    def check_integrity(self, running: Set[RequestId]) -> None:
        assert self._held.keys() == running, self
        assert self.in_flight_tokens == sum(self._held.values()), self

    def _wanted(self, request: QueuedRequest) -> int:
        return self._tokens_of(request, request.expected_output_tokens)

    def _set(self, request: QueuedRequest, tokens: int) -> None:
        self.in_flight_tokens += tokens - self._held.get(request.request_id, 0)
        self._held[request.request_id] = tokens


class KvIoBudget:
    """KV bytes that prefill hands over, per second. A request fits once everything before it has had its
    time on the link, so a large request is not overtaken, and none is too large. bytes_per_token 0: nothing
    is handed over. limit None: no limit."""

    name = "KV I/O"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._bytes_per_second: float | None = None
        self._bytes_per_token = 0.0
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

    def set_limit(self, bytes_per_second: float | None, bytes_per_token: float) -> None:
        self._bytes_per_second, self._bytes_per_token = bytes_per_second, bytes_per_token

    def fits(self, request: QueuedRequest) -> bool:
        return self._bytes_per_second is None or self._spend.wait_seconds(self._clock.now()) == 0.0

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
        if self._bytes_per_second is None:
            return NO_WAIT
        return Wait(self._spend.wait_seconds(self._clock.now()), sure=True)

    def check_integrity(self, running: Set[RequestId]) -> None:
        assert self._held == running, self

    def _seconds(self, request: QueuedRequest) -> float:
        assert self._bytes_per_second is not None
        return request.prompt_tokens * self._bytes_per_token / self._bytes_per_second


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
