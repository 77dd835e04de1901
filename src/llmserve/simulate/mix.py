"""Made-up requests: kinds of requests, a rate, and tenants with their part of the load."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import TenantId
from llmserve.traces import TracedRequest


@dataclass(frozen=True, slots=True)
class RequestKind:
    """Sizes are drawn evenly from half to one and a half of these."""

    prompt_tokens: int
    output_tokens: int


REQUEST_KINDS: Mapping[str, RequestKind] = {
    "short": RequestKind(200, 60),
    "chat": RequestKind(800, 250),
    "long": RequestKind(4000, 500),
}


@dataclass(frozen=True, slots=True)
class RequestMix:
    """kinds, tenants: each with its part of all requests, in any unit. requests_per_second: rate of a
    Poisson process over all tenants. shared_tokens: common prefix of all prompts of a tenant."""

    kinds: Sequence[tuple[RequestKind, float]]
    tenants: Sequence[tuple[TenantId, float]]
    requests_per_second: float
    seconds: float
    shared_tokens: int = 0

    def requests(self, rng: random.Random) -> list[TracedRequest]:
        """Returns requests in the order of arrival; the same for the same state of rng."""
        made: list[TracedRequest] = []
        tenants = [name for name, _ in self.tenants]
        next_tenant = tenant_drawer(self.tenants, rng)
        now = rng.expovariate(self.requests_per_second)
        while now < self.seconds:
            tenant = next_tenant()
            kind = rng.choices([k for k, _ in self.kinds], [part for _, part in self.kinds])[0]
            made.append(self._one(now, tenant, kind, tenants.index(tenant), rng))
            now += rng.expovariate(self.requests_per_second)
        return made

    def _one(
        self, now: float, tenant: TenantId, kind: RequestKind, prefix: int, rng: random.Random
    ) -> TracedRequest:
        return TracedRequest(
            now,
            self.shared_tokens + _about(kind.prompt_tokens, rng),
            _about(kind.output_tokens, rng),
            tenant,
            prefix_names=(prefix,) if self.shared_tokens else (),
            run_tokens=max(1, self.shared_tokens),
        )


def tenant_drawer(tenants: Sequence[tuple[TenantId, float]], rng: random.Random) -> Callable[[], TenantId]:
    """Returns a function that draws tenants by their part."""
    names, parts = zip(*tenants, strict=True)
    return lambda: TenantId(rng.choices(names, parts)[0])


def parse_kind(text: str) -> tuple[RequestKind, float]:
    """`short:70`, or `PROMPT/OUTPUT:70` in tokens. Errors: InvalidRequest."""
    name, _, part = text.rpartition(":")
    try:
        prompt, slash, output = name.partition("/")
        kind = RequestKind(int(prompt), int(output)) if slash else REQUEST_KINDS[name]
        share = float(part)
    except (KeyError, ValueError) as error:
        known = ", ".join(REQUEST_KINDS)
        raise InvalidRequest(
            f"--mix {text!r}: write NAME:PART with {known}, or PROMPT_TOKENS/OUTPUT_TOKENS:PART"
        ) from error
    if not 0 < share < float("inf") or kind.prompt_tokens < 1 or kind.output_tokens < 1:
        raise InvalidRequest(f"--mix {text!r}: tokens and part must be positive")
    return kind, share


def parse_part(option: str, text: str) -> tuple[TenantId, float]:
    """`NAME=4`. Errors: InvalidRequest."""
    name, _, part = text.partition("=")
    try:
        share = float(part)
    except ValueError as error:
        raise InvalidRequest(f"{option} {text!r}: write NAME=NUMBER") from error
    if not name or not 0 < share < float("inf"):
        raise InvalidRequest(f"{option} {text!r}: write NAME=NUMBER with a positive number")
    return TenantId(name), share


def _about(tokens: int, rng: random.Random) -> int:
    return max(1, rng.randint(tokens // 2, tokens + tokens // 2))
