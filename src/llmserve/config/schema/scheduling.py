"""Sections `budgets` and `scheduling`: how much may run at once, and whose turn it is."""

from typing import Annotated, Literal

from pydantic import Field

from llmserve.config.schema.section import KeyUnit, Live, ManifestSection


class TenantBudget(ManifestSection):
    """What one tenant may use. A tenant that has used it up waits, and nobody else does."""

    max_requests_in_flight: Annotated[
        int | None,
        KeyUnit("requests"),
        Field(
            gt=0,
            description="Its requests that run at the same time; each choice (`n`) is one. Without it, "
            "no limit.",
        ),
    ] = None
    max_requests_per_second: Annotated[
        float | None,
        KeyUnit("requests/second"),
        Field(gt=0, description="Its requests that start in a second, on average. Without it, no limit."),
    ] = None
    max_tokens_per_second: Annotated[
        float | None,
        KeyUnit("tokens/second"),
        Field(
            gt=0,
            description="Prompt tokens to compute and tokens generated for it in a second, on average. "
            "Without it, no limit.",
        ),
    ] = None


class NamedTenantBudget(TenantBudget):
    """What one named tenant may use."""

    tenant: Annotated[str, Field(min_length=1, description="The tenant, as in `security.api_keys`.")]


class Budgets(ManifestSection):
    """What all running requests together may use."""

    max_tokens_in_flight: Annotated[
        int | None,
        KeyUnit("tokens"),
        Live(("router",)),
        Field(
            gt=0,
            description="Prompt tokens to compute and expected answer tokens of all running requests. "
            "Without it, no limit.",
        ),
    ] = None
    hbm_gb: Annotated[
        float | None,
        KeyUnit("GiB"),
        Live(("router",)),
        Field(
            gt=0,
            description="KV of all running requests: prompt and expected answer. Without it, what the "
            "engines have, who preempt requests when it is used up.",
        ),
    ] = None
    max_kv_io_gbps: Annotated[
        float | None,
        KeyUnit("Gbit/s"),
        Live(("router",), at_start=("worker",)),
        Field(
            gt=0,
            description="KV bytes that engines fetch from each other, of the whole cluster; each decode "
            "engine gets an equal part, and requests start no faster than their KV can move.",
        ),
    ] = None
    max_requests_in_flight: Annotated[
        int | None,
        KeyUnit("requests"),
        Live(("router",)),
        Field(
            gt=0,
            description="Requests that run at the same time; each choice (`n`) is one. Without it, what all "
            "decode engines hold.",
        ),
    ] = None
    per_tenant: Annotated[
        TenantBudget,
        Live(("router",)),
        Field(description="What each tenant may use that `tenants` does not name."),
    ] = TenantBudget()
    tenants: Annotated[
        tuple[NamedTenantBudget, ...],
        Live(("router",)),
        Field(strict=False, description="Tenants with budgets of their own, in place of `per_tenant`."),
    ] = ()


class TenantWeight(ManifestSection):
    """How much of the cluster a tenant gets while others wait as well."""

    tenant: Annotated[str, Field(min_length=1, description="The tenant, as in `security.api_keys`.")]
    weight: Annotated[
        float,
        Field(ge=0.01, le=1000, description="Its share, against 1 of a tenant that is not named."),
    ]


class Scheduling(ManifestSection):
    """Whose turn it is, queueing, and when something counts as gone."""

    weights: Annotated[
        tuple[TenantWeight, ...],
        Live(("router",)),
        Field(strict=False, description="Shares of tenants. Those that are not named have weight 1."),
    ] = ()
    srpt_bias: Annotated[
        float,
        KeyUnit("seconds/1,000 tokens"),
        Live(("router",)),
        Field(
            ge=0,
            description="Within a tenant, 1,000 tokens of expected work let others pass that come up to this "
            "much later. 0: in the order of arrival.",
        ),
    ] = 5.0
    aging_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Live(("router",)),
        Field(ge=0, description="Nothing that comes later than this passes, however short it is."),
    ] = 20.0
    priority_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Live(("router",)),
        Field(
            ge=0,
            description="What a step of a request's `priority` is worth among the requests of its tenant: "
            "it queues as if it had come this much later. Lower is earlier, from -10 to 10.",
        ),
    ] = 5.0

    max_queued_requests: Annotated[
        int,
        KeyUnit("requests"),
        Live(("router",)),
        Field(
            ge=0,
            description="Requests that may wait; one more is refused with 429, or takes "
            "the place of one whose tenant has more of the queue than its share.",
        ),
    ] = 1024
    queue_timeout_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Live(("router", "apiserver")),
        Field(gt=0, description="How long a request may wait before it is refused with 503."),
    ] = 60.0
    worker_heartbeat_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Live(("router", "worker")),
        Field(gt=0, description="How often a worker reports its load to the router."),
    ] = 1.0
    worker_expiry_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Live(("router",)),
        Field(
            gt=0, description="A worker that was silent this long gets no requests until it is heard again."
        ),
    ] = 4.0
    request_timeout_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Live(("apiserver",)),
        Field(gt=0, description="How long a request may take in all, queueing included."),
    ] = 600.0
    routing: Annotated[
        Literal["kv_aware", "least_loaded", "round_robin"],
        Live(("router",)),
        Field(
            description="Which workers a request gets. `kv_aware`: those where it is predicted to wait "
            "least, what they have cached included. The others do not look at caches; they are there to "
            "compare with."
        ),
    ] = "kv_aware"
    disaggregate: Annotated[
        Literal["auto", "always", "never"],
        Live(("router",), at_start=("apiserver",)),
        Field(
            description="Whether prompt and answer are computed by two engines, where there are prefill "
            "engines. `auto`: not when a decode engine alone is predicted to be better, as for a short or "
            "mostly cached prompt, or when no engine of one of the roles can be used: the other does all "
            "then. `never`: decode engines do all, and prefill engines only when no decode engine can."
        ),
    ] = "auto"
    engine_queue_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Live(("router",)),
        Field(
            ge=0,
            description="Once an engine has so many seconds of prompts before it, as predicted, further "
            "requests wait at the router, where shares and priorities count. One prompt may always wait at "
            "the engine.",
        ),
    ] = 0.5
    first_token_timeout_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Live(("apiserver",)),
        Field(
            gt=0,
            description="A worker that gives a request no output for this long after it was sent is given "
            "up for that request, and another is tried.",
        ),
    ] = 120.0
    token_timeout_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Live(("apiserver",)),
        Field(gt=0, description="The same, from one output to the next."),
    ] = 60.0
    router_patience_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Field(
            gt=0,
            description="How long requests wait for a router that is away; longer than it takes to restart.",
        ),
    ] = 30.0
    retry_share: Annotated[
        float,
        KeyUnit("retries/request"),
        Field(
            ge=0,
            le=1,
            description="Requests that are placed again after a worker failed them, as a share of all. "
            "More fail with the error of the worker, so that trouble does not multiply the load.",
        ),
    ] = 0.2
    retry_burst: Annotated[
        int,
        KeyUnit("requests"),
        Field(
            ge=1,
            description="Retries at once, of each apiserver, beyond the share: as many requests as it may "
            "lose with one worker.",
        ),
    ] = 256
    retry_tenant_share: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="The part of `retry_burst` that one tenant may use, when there are several: requests "
            "of one that fail everywhere leave retries to the others.",
        ),
    ] = 0.5
    drain_timeout_seconds: Annotated[
        float,
        KeyUnit("seconds"),
        Live(("router",)),
        Field(
            gt=0,
            description="How long a worker that is drained lets its requests end; what still runs then goes "
            "on elsewhere. `llmserve drain --timeout` says otherwise.",
        ),
    ] = 60.0
    slow_worker_factor: Annotated[
        float,
        Live(("router",)),
        Field(
            gt=1,
            description="A worker this many times slower than the median of the others of its role is "
            "avoided while they have room.",
        ),
    ] = 3.0
