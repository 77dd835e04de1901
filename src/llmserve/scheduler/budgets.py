"""Budgets of the whole cluster: what dispatched requests hold, and how much there is."""

from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Protocol

from llmserve.core.clock import Clock
from llmserve.core.ids import RequestId
from llmserve.scheduler.models import ModelShares
from llmserve.scheduler.rate import ServiceRate
from llmserve.scheduler.request import QueuedRequest


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


class ClusterBudget(Budget, Protocol):
    """A budget of all models together."""

    def full_for_all(self, request: QueuedRequest) -> bool:
        """Whether there is no room for the request whatever its model. False: there is, or only its model has
        no room."""

    def held_ratio(self, model: str) -> float:
        """Part of the limit that the requests of a model hold; 0 without a limit."""


class RequestBudget:
    """The number of requests in flight; each choice counts as one. limit_requests: of all models together.
    None: a model runs as many as its engines can. most_choices: returns the most choices of one request of a
    model, and the setting that limits them."""

    name = "requests in flight"

    def __init__(
        self,
        limit_requests: int | None,
        shares: ModelShares | None = None,
        most_choices: Callable[[str], tuple[int, str]] = lambda _: (0, ""),
    ) -> None:
        self.limit_requests = limit_requests
        self._shares, self._most_choices = shares or ModelShares(), most_choices
        self._engines: Mapping[str, int] = {}
        self._held: dict[RequestId, int] = {}
        self._of_model: Counter[str] = Counter()
        self.in_flight = 0

    def __repr__(self) -> str:
        return f"<RequestBudget {self.in_flight} of {self._limit}>"

    @property
    def used_ratio(self) -> float | None:
        """None while no worker could run anything."""
        return self.in_flight / self._limit if self._limit else None

    @property
    def _limit(self) -> int:
        return sum(self._engines.values()) if self.limit_requests is None else self.limit_requests

    def set_limit(self, limit_requests: int | None, engines: Mapping[str, int]) -> None:
        """A smaller limit takes nothing back: dispatch waits until enough requests have ended. engines:
        requests that those of each model run at once."""
        self.limit_requests, self._engines = limit_requests, engines

    def fits(self, request: QueuedRequest) -> bool:
        held = self._of_model[request.model]
        wanted = held + request.choices
        if self.limit_requests is None:
            return wanted <= self._engines.get(request.model, 0)
        if self.full_for_all(request):
            return False
        return not held or wanted <= self.limit_requests * self._shares.part(request.model)

    def full_for_all(self, request: QueuedRequest) -> bool:
        return self.limit_requests is not None and self.in_flight + request.choices > self.limit_requests

    def held_ratio(self, model: str) -> float:
        return self._of_model[model] / self.limit_requests if self.limit_requests else 0.0

    def refusal(self, request: QueuedRequest) -> str:
        """A model without workers has none only until one registers."""
        return choices_refusal(request, *self._most_choices(request.model))

    def reserve(self, request: QueuedRequest) -> None:
        assert request.request_id not in self._held, "reserved twice"
        self._held[request.request_id] = request.choices
        self._of_model[request.model] += request.choices
        self.in_flight += request.choices

    def correct(self, request: QueuedRequest, output_tokens: int) -> None:
        """Tokens do not change the number of requests."""

    def release(self, request: QueuedRequest, output_tokens: int) -> None:
        choices = self._held.pop(request.request_id)
        self._of_model[request.model] -= choices
        self.in_flight -= choices

    def wait(self, request: QueuedRequest, ahead: int) -> Wait:
        return NO_WAIT  # the queue itself measures how fast requests end

    def check_integrity(self, running: Set[RequestId]) -> None:
        assert self._held.keys() == running, self
        assert self.in_flight == sum(self._held.values()) == self._of_model.total(), self
        assert min(self._of_model.values(), default=0) >= 0, self


def choices_refusal(request: QueuedRequest, most: int, setting: str) -> str:
    """Why a request has too many choices, which all run at the same time; empty: it has not. most 0:
    unknown."""
    if not 0 < most < request.choices:
        return ""
    return f"n: the {request.choices} choices of a request run side by side, and {setting} allows {most}"


class TokenBudget:
    """Tokens of all models together. tokens_of(request, output_tokens): tokens that a request holds when it
    has generated output_tokens; at dispatch these are the expected ones. setting: name of the limit in the
    manifest."""

    def __init__(
        self,
        clock: Clock,
        name: str,
        setting: str,
        tokens_of: Callable[[QueuedRequest, int], int],
        shares: ModelShares | None = None,
    ) -> None:
        self.name = name
        self._clock, self._setting, self._tokens_of = clock, setting, tokens_of
        self._shares = shares or ModelShares()
        self._limit: float | None = None
        self._prices: Mapping[str, float] | None = None
        self._held: dict[RequestId, int] = {}
        self._of_model: Counter[str] = Counter()  # tokens
        self._rate = ServiceRate()

    def __repr__(self) -> str:
        return f"<TokenBudget {self.name}: {self._used:g} of {self._limit}>"

    @property
    def in_flight_tokens(self) -> int:
        return self._of_model.total()

    def in_flight_of(self, model: str) -> int:
        """Returns the tokens of a model."""
        return self._of_model[model]

    @property
    def used_ratio(self) -> float | None:
        """None: there is no limit."""
        return self._used / self._limit if self._limit and self._is_priced else None

    def set_limit(self, limit: float | None, prices: Mapping[str, float] | None = None) -> None:
        """A smaller limit takes nothing back. limit: None: there is none. prices: how much of the limit a
        token of each model takes; None: 1. A model without a price has no limit."""
        self._limit, self._prices = limit, prices

    def limit_tokens(self, model: str) -> int | None:
        """Returns the most tokens of a model; None: there is no limit."""
        price = self._price(model)
        return int(self._limit / price) if self._limit is not None and price else None

    def fits(self, request: QueuedRequest) -> bool:
        return self._missing(request) <= 0

    def full_for_all(self, request: QueuedRequest) -> bool:
        return self._missing_for_all(request) > 0

    def held_ratio(self, model: str) -> float:
        return self._of_model[model] * self._price(model) / self._limit if self._limit else 0.0

    def refusal(self, request: QueuedRequest) -> str:
        wanted, limit = self._wanted(request), self.limit_tokens(request.model)
        if limit is None or wanted <= limit:
            return ""
        why = f" for its {request.choices} choices (n)" if request.choices > 1 else ""
        return f"{self.name}: the request needs {wanted}{why}, and {self._setting} allows {limit}"

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
        self._of_model[request.model] -= tokens
        self._rate.departed(self._clock.now(), tokens * self._price(request.model))
        if not self._held:
            self._rate.backlog(False, self._clock.now())

    def wait(self, request: QueuedRequest, ahead: int) -> Wait:
        missing = self._missing(request)
        return (
            Wait(self._rate.wait_seconds(missing, self._clock.now(), float("inf")))
            if missing > 0
            else NO_WAIT
        )

    def check_integrity(self, running: Set[RequestId]) -> None:
        assert self._held.keys() == running, self
        assert self.in_flight_tokens == sum(self._held.values()), self
        assert min(self._of_model.values(), default=0) >= 0, self

    # -- parts

    @property
    def _used(self) -> float:
        return sum(tokens * self._price(model) for model, tokens in self._of_model.items())

    @property
    def _is_priced(self) -> bool:
        return self._prices is None or any(self._prices.values())

    def _price(self, model: str) -> float:
        return 1.0 if self._prices is None else self._prices.get(model, 0.0)

    def _wanted(self, request: QueuedRequest) -> int:
        return self._tokens_of(request, request.expected_output_tokens)

    def _missing(self, request: QueuedRequest) -> float:
        """What the request lacks of the limit, or of its model's part. A model that holds nothing has room
        for any request that fits the limit."""
        for_all, held = self._missing_for_all(request), self._of_model[request.model]
        if self._limit is None or not held:
            return for_all
        wanted = (held + self._wanted(request)) * self._price(request.model)
        return max(for_all, wanted - self._limit * self._shares.part(request.model))

    def _missing_for_all(self, request: QueuedRequest) -> float:
        price = self._price(request.model)
        if self._limit is None or not price:
            return 0.0
        return self._used + self._wanted(request) * price - self._limit

    def _set(self, request: QueuedRequest, tokens: int) -> None:
        self._of_model[request.model] += tokens - self._held.get(request.request_id, 0)
        self._held[request.request_id] = tokens
