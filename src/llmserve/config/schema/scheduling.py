"""Sections `budgets` and `scheduling`: how much may run at once, and whose turn it is."""

from typing import Annotated, Literal

from pydantic import Field

from llmserve.config.schema.section import GiB, KeyUnit, Live, ManifestSection, Requests, Seconds, Tokens

_ROUTER = Live(("router",))


class TenantBudget(ManifestSection):
    """What one tenant may use. A tenant that has used it up waits, and no other tenant does."""

    max_requests_in_flight: Requests | None = Field(default=None, gt=0)
    """At most this many requests of the tenant run at the same time; each choice (`n`) counts as one. Without
    it, there is no limit."""
    max_requests_per_second: Annotated[float | None, KeyUnit("requests/second")] = Field(default=None, gt=0)
    """At most this many requests of the tenant start in a second, on average. Without it, there is no
    limit."""
    max_tokens_per_second: Annotated[float | None, KeyUnit("tokens/second")] = Field(default=None, gt=0)
    """At most this many tokens are computed (prompt) or generated for the tenant in a second, on average.
    Without it, there is no limit."""


class NamedTenantBudget(TenantBudget):
    """What one named tenant may use."""

    tenant: str = Field(min_length=1)
    """The tenant is named as in `security.api_keys`."""


class Budgets(ManifestSection):
    """What all running requests together may use."""

    max_tokens_in_flight: Annotated[Tokens | None, _ROUTER] = Field(default=None, gt=0)
    """Running requests may have this many tokens together: prompt tokens to compute and expected answer
    tokens. Without it, there is no limit."""
    hbm_gb: Annotated[GiB | None, _ROUTER] = Field(default=None, gt=0)
    """The KV of running requests (prompts and expected answers) may take this much device memory. Without it,
    the engines' own memory is the limit, and an engine preempts requests when its memory is used up."""
    max_kv_io_gbps: Annotated[float | None, KeyUnit("Gbit/s"), Live(("router",), at_start=("worker",))] = (
        Field(default=None, gt=0)
    )
    """Engines fetch KV from each other at most at this rate, summed over the cluster. Each decode engine gets
    an equal part, and requests start no faster than their KV can move. Without it, there is no limit."""
    max_requests_in_flight: Annotated[Requests | None, _ROUTER] = Field(default=None, gt=0)
    """At most this many requests run at the same time; each choice (`n`) counts as one. Without it, the limit
    is what all decode engines can run."""
    per_tenant: Annotated[TenantBudget, _ROUTER] = TenantBudget()
    """What each tenant may use that `tenants` does not name."""
    tenants: Annotated[tuple[NamedTenantBudget, ...], _ROUTER] = Field(default=(), strict=False)
    """Tenants with budgets of their own, which replace `per_tenant`."""


class TenantWeight(ManifestSection):
    """The share of the cluster that a tenant gets while other tenants wait as well."""

    tenant: str = Field(min_length=1)
    """The tenant is named as in `security.api_keys`."""
    weight: float = Field(ge=0.01, le=1000)
    """The tenant's share, relative to the weight 1 of a tenant that is not named."""


class Scheduling(ManifestSection):
    """The order of requests, queueing, placement, and the time limits of requests and processes."""

    weights: Annotated[tuple[TenantWeight, ...], _ROUTER] = Field(default=(), strict=False)
    """Shares of tenants. Tenants that are not named have the weight 1."""
    srpt_bias: Annotated[float, KeyUnit("seconds/1,000 tokens"), _ROUTER] = Field(default=5.0, ge=0)
    """Short requests may overtake long ones of the same tenant. Each 1,000 tokens of expected work delay a
    request's turn as if it had come this much later. 0 keeps the order of arrival."""
    aging_seconds: Annotated[Seconds, _ROUTER] = Field(default=20.0, ge=0)
    """A request is never overtaken by one that came more than this much later, however short that one is."""
    adapter_packing: Annotated[Seconds, _ROUTER] = Field(default=10.0, ge=0)
    """A request whose adapter no worker has loaded lets later requests of its tenant go first for this long:
    those that need no load, and those of the adapter that most of them ask for. 0 keeps the order."""
    priority_seconds: Annotated[Seconds, _ROUTER] = Field(default=5.0, ge=0)
    """One step of a request's `priority` moves it by this much among the requests of its tenant, as if it had
    come that much earlier or later. Priorities go from -10 to 10; a lower one is served earlier."""

    max_queued_requests: Annotated[Requests, _ROUTER] = Field(default=1024, ge=0)
    """At most this many requests of a model wait. A further request is rejected with 429, or takes the place
    of one whose tenant has more of the queue than its share."""
    queue_timeout_seconds: Annotated[Seconds, Live(("router", "apiserver"))] = Field(default=60.0, gt=0)
    """A request that has waited this long is rejected with 503."""
    worker_heartbeat_seconds: Annotated[Seconds, Live(("router", "worker"))] = Field(default=1.0, gt=0)
    """A worker reports its load to the router at this interval."""
    worker_expiry_seconds: Annotated[Seconds, _ROUTER] = Field(default=4.0, gt=0)
    """A worker that has been silent for this long gets no requests until it reports again."""
    request_timeout_seconds: Annotated[Seconds, Live(("apiserver",))] = Field(default=600.0, gt=0)
    """A request may take this long in all, including the time in the queue."""
    routing: Annotated[Literal["kv_aware", "least_loaded", "round_robin"], _ROUTER] = "kv_aware"
    """How workers are chosen for a request. `kv_aware` chooses those on which the request is predicted to
    wait least, and takes their cached prefixes into account. The others ignore caches and serve for
    comparison."""
    disaggregate: Annotated[
        Literal["auto", "always", "never"], Live(("router",), at_start=("apiserver",))
    ] = "auto"
    """Whether two engines compute prompt and answer, where there are prefill engines. `auto` uses a decode
    engine alone when that is predicted to be faster, as for a short or mostly cached prompt, and uses any
    engine when no engine of one role is available. `never` lets decode engines compute everything, and uses
    prefill engines only when no decode engine is available."""
    engine_queue_seconds: Annotated[Seconds, _ROUTER] = Field(default=0.5, ge=0)
    """An engine gets no further requests once its queued prompts are predicted to take this long. Further
    requests wait in the router, where shares and priorities apply. One prompt may always wait in the
    engine."""
    first_token_timeout_seconds: Annotated[Seconds, Live(("apiserver",))] = Field(default=120.0, gt=0)
    """A request is sent to another worker when its worker has produced no output for this long."""
    token_timeout_seconds: Annotated[Seconds, Live(("apiserver",))] = Field(default=60.0, gt=0)
    """A request is sent to another worker when its worker produces no further output for this long."""
    router_patience_seconds: Seconds = Field(default=30.0, gt=0)
    """Requests wait this long for a router that is not reachable. It should exceed the router's restart
    time."""
    retry_share: Annotated[float, KeyUnit("retries/request")] = Field(default=0.2, ge=0, le=1)
    """This share of all requests may be retried after a worker failed them. Further ones fail with the
    worker's error, so that errors do not multiply the load."""
    retry_burst: Requests = Field(default=256, ge=1)
    """Each apiserver may retry this many requests at once beyond the share. It should be as many as one
    worker runs for it."""
    retry_tenant_share: float = Field(default=0.5, gt=0, le=1)
    """One tenant may use this part of `retry_burst` when there are several tenants, so that requests that
    always fail leave retries to the other tenants."""
    drain_timeout_seconds: Annotated[Seconds, Live(("router",), at_start=("apiserver",))] = Field(
        default=60.0, gt=0
    )
    """A worker that is drained may finish its requests for this long. The rest then continues on other
    workers. `llmserve drain --timeout` takes precedence. So long requests of a model that is unloaded may go
    on, too."""
    slow_worker_factor: Annotated[float, _ROUTER] = Field(default=3.0, gt=1)
    """A worker that is this many times slower than the median of the other workers of its role is avoided
    while the others have room."""
