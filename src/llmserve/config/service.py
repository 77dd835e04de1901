"""Sections `budgets`, `scheduling`, `security`, `state` and `observability`: the cluster as a service."""

from typing import Annotated, Literal

from pydantic import Field

from llmserve.config.knob import AtStart, Live, Section, Unit


class TenantBudget(Section):
    """What one tenant may use. A tenant that has used it up waits, and nobody else does."""

    max_requests_in_flight: Annotated[
        int | None,
        Unit("requests"),
        Field(gt=0, description="Its requests that run at the same time. Without it, no limit."),
    ] = None
    max_requests_per_second: Annotated[
        float | None,
        Unit("requests/second"),
        Field(gt=0, description="Its requests that start in a second, on average. Without it, no limit."),
    ] = None
    max_tokens_per_second: Annotated[
        float | None,
        Unit("tokens/second"),
        Field(
            gt=0,
            description="Prompt tokens to compute and tokens generated for it in a second, on average. "
            "Without it, no limit.",
        ),
    ] = None


class NamedTenantBudget(TenantBudget):
    """What one named tenant may use."""

    tenant: Annotated[str, Field(min_length=1, description="The tenant, as in `security.api_keys`.")]


class Budgets(Section):
    """What all running requests together may use."""

    max_tokens_in_flight: Annotated[
        int | None,
        Unit("tokens"),
        Live(("router",)),
        Field(
            gt=0,
            description="Prompt tokens to compute and expected answer tokens of all running requests. "
            "Without it, no limit.",
        ),
    ] = None
    hbm_gb: Annotated[
        float | None,
        Unit("GiB"),
        Live(("router",)),
        Field(
            gt=0,
            description="KV of all running requests: prompt and expected answer. Without it, what the "
            "engines have, who preempt requests when it is used up.",
        ),
    ] = None
    max_kv_io_gbps: Annotated[
        float | None,
        Unit("Gbit/s"),
        Live(("router",), at_start=("worker",)),
        Field(
            gt=0,
            description="KV bytes that engines fetch from each other, of the whole cluster; each decode "
            "engine gets an equal part, and requests start no faster than their KV can move.",
        ),
    ] = None
    max_requests_in_flight: Annotated[
        int | None,
        Unit("requests"),
        Live(("router",)),
        Field(
            gt=0,
            description="Requests that run at the same time. Without it, what all decode engines hold.",
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


class TenantWeight(Section):
    """How much of the cluster a tenant gets while others wait as well."""

    tenant: Annotated[str, Field(min_length=1, description="The tenant, as in `security.api_keys`.")]
    weight: Annotated[
        float,
        Field(ge=0.01, le=1000, description="Its share, against 1 of a tenant that is not named."),
    ]


class Scheduling(Section):
    """Whose turn it is, queueing, and when something counts as gone."""

    weights: Annotated[
        tuple[TenantWeight, ...],
        Live(("router",)),
        Field(strict=False, description="Shares of tenants. Those that are not named have weight 1."),
    ] = ()
    srpt_bias: Annotated[
        float,
        Unit("seconds/1,000 tokens"),
        Live(("router",)),
        Field(
            ge=0,
            description="Within a tenant, 1,000 tokens of expected work let others pass that come up to this "
            "much later. 0: in the order of arrival.",
        ),
    ] = 5.0
    aging_seconds: Annotated[
        float,
        Unit("seconds"),
        Live(("router",)),
        Field(ge=0, description="Nothing that comes later than this passes, however short it is."),
    ] = 20.0
    priority_seconds: Annotated[
        float,
        Unit("seconds"),
        Live(("router",)),
        Field(
            ge=0,
            description="What a step of a request's `priority` is worth among the requests of its tenant: "
            "it queues as if it had come this much later. Lower is earlier, from -10 to 10.",
        ),
    ] = 5.0

    max_queued_requests: Annotated[
        int,
        Unit("requests"),
        Live(("router",)),
        Field(
            ge=0,
            description="Requests that may wait; one more is refused with 429, or takes "
            "the place of one whose tenant has more of the queue than its share.",
        ),
    ] = 1024
    queue_timeout_seconds: Annotated[
        float,
        Unit("seconds"),
        Live(("router", "apiserver")),
        Field(gt=0, description="How long a request may wait before it is refused with 503."),
    ] = 60.0
    worker_heartbeat_seconds: Annotated[
        float,
        Unit("seconds"),
        Live(("router", "worker")),
        Field(gt=0, description="How often a worker reports its load to the router."),
    ] = 1.0
    worker_expiry_seconds: Annotated[
        float,
        Unit("seconds"),
        Live(("router",)),
        Field(
            gt=0, description="A worker that was silent this long gets no requests until it is heard again."
        ),
    ] = 4.0
    request_timeout_seconds: Annotated[
        float,
        Unit("seconds"),
        Live(("apiserver",)),
        Field(gt=0, description="How long a request may take in all, queueing included."),
    ] = 600.0
    routing: Annotated[
        Literal["kv_aware", "least_loaded", "round_robin"],
        Field(
            description="Which workers a request gets. `kv_aware`: those where it is predicted to wait "
            "least, what they have cached included. The others do not look at caches; they are there to "
            "compare with."
        ),
    ] = "kv_aware"
    disaggregate: Annotated[
        Literal["auto", "always", "never"],
        Field(
            description="Whether prompt and answer are computed by two engines, where there are prefill "
            "engines. `auto`: not when a decode engine alone is predicted to be better, as for a short or "
            "mostly cached prompt, or when no prefill engine is there. `never`: decode engines do all."
        ),
    ] = "auto"
    engine_queue_seconds: Annotated[
        float,
        Unit("seconds"),
        Field(
            ge=0,
            description="Once an engine has so many seconds of prompts before it, as predicted, further "
            "requests wait at the router, where shares and priorities count. One prompt may always wait at "
            "the engine.",
        ),
    ] = 0.5
    first_token_timeout_seconds: Annotated[
        float,
        Unit("seconds"),
        Live(("apiserver",)),
        Field(
            gt=0,
            description="A worker that gives a request no output for this long after it was sent is given "
            "up for that request, and another is tried.",
        ),
    ] = 120.0
    token_timeout_seconds: Annotated[
        float,
        Unit("seconds"),
        Live(("apiserver",)),
        Field(gt=0, description="The same, from one output to the next."),
    ] = 60.0
    router_patience_seconds: Annotated[
        float,
        Unit("seconds"),
        Field(
            gt=0,
            description="How long requests wait for a router that is away; longer than it takes to restart.",
        ),
    ] = 30.0
    retry_share: Annotated[
        float,
        Unit("retries/request"),
        Field(
            ge=0,
            le=1,
            description="Requests that are placed again after a worker failed them, as a share of all. "
            "More fail with the error of the worker, so that trouble does not multiply the load.",
        ),
    ] = 0.2
    retry_burst: Annotated[
        int,
        Unit("requests"),
        Field(
            ge=1,
            description="Retries at once, of each apiserver, beyond the share: as many requests as it may "
            "lose with one worker.",
        ),
    ] = 256
    drain_timeout_seconds: Annotated[
        float,
        Unit("seconds"),
        Live(("router",)),
        Field(
            gt=0,
            description="How long a worker that is drained lets its requests end; what still runs then goes "
            "on elsewhere. `llmserve drain --timeout` says otherwise.",
        ),
    ] = 60.0
    slow_worker_factor: Annotated[
        float,
        Field(
            gt=1,
            description="A worker this many times slower than the median of the others of its role is "
            "avoided while they have room.",
        ),
    ] = 3.0


class ApiKey(Section):
    """A key and the tenant it stands for. A tenant may have several."""

    tenant: Annotated[str, Field(min_length=1, description="Who uses the key.")]
    key: Annotated[
        str | None,
        Field(
            min_length=1,
            repr=False,
            description="The key itself. Better: `key_env`, so that no secret is in the file.",
        ),
    ] = None
    key_env: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            description="Environment variable of the apiserver that holds the key.",
        ),
    ] = None
    admin: Annotated[
        bool,
        Field(
            description="May also use `/admin` paths, and see the records of all requests "
            "(`/v1/requests/ID/explain`)."
        ),
    ] = False
    kv_quota_gb: Annotated[
        float | None,
        Unit("GiB"),
        AtStart(("kvmanager",)),
        Field(
            gt=0,
            description="What the tenant's KV blocks may take in each storage class. Without it, what there "
            "is. Say it with one of the tenant's keys.",
        ),
    ] = None


class Security(Section):
    """Who may use the cluster, and who shares KV with whom."""

    api_keys: Annotated[
        tuple[ApiKey, ...],
        Live(("apiserver",)),
        Field(
            strict=False,
            description="Keys that clients send as `Authorization: Bearer KEY`. Without any, everybody may "
            "use the API, as tenant `default`.",
        ),
    ] = ()
    kv_sharing: Annotated[
        Literal["tenant", "cluster"],
        Field(
            description="Who reuses the KV of equal prompts. `tenant`: only the tenant itself. `cluster`: "
            "all, and how fast an answer comes betrays whether another tenant has asked the same."
        ),
    ] = "tenant"


class RedisServer(Section):
    """The Redis (or Valkey) server that routers share. It keeps a few kilobytes, and needs no disk."""

    url: Annotated[
        str,
        Field(
            pattern=r"^rediss?://[^\s/?#]+(/[0-9]+)?$",
            description="`redis://[USER@]HOST:PORT/DB`, or `rediss://` with TLS. Clusters with different "
            "`metadata.name` can share one.",
        ),
    ]
    password_env: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            description="Environment variable of the routers that holds the password.",
        ),
    ] = None


class State(Section):
    """Where the state is that routers share."""

    backend: Annotated[
        Literal["memory", "redis"],
        Field(
            description="`memory`: in the router, which is the only one. `redis`: in a Redis server, for "
            "several routers, or for one that goes on with its shares and rates after a restart."
        ),
    ] = "memory"
    redis: Annotated[RedisServer | None, Field(description="With `backend: redis`.")] = None


class Observability(Section):
    """What the cluster tells about itself."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Live(("router", "apiserver", "worker"), at_start=("kvmanager",)),
        Field(description="Least severity that is logged."),
    ] = "info"
    log_dir: Annotated[
        str | None,
        Field(
            min_length=1, description="Directory of the log files. Without it, `logs` in the run directory."
        ),
    ] = None
    log_file_mib: Annotated[
        int,
        Unit("MiB"),
        Field(
            ge=1,
            le=65536,
            description="How long `llmserve up` lets the log of a process become. A longer one is moved to "
            "`NAME.1.log`, in place of what was there; so a process has three such files at most, with "
            "the one of the run before, `NAME.previous.log`.",
        ),
    ] = 16
    explain_requests: Annotated[
        int,
        Unit("requests"),
        Live(("apiserver",)),
        Field(
            ge=0,
            le=1_000_000,
            description="How many requests each apiserver remembers for `llmserve explain`: the latest, and "
            "never more than 64 MiB of them. 0: none.",
        ),
    ] = 1000
    metrics: Annotated[
        bool, Field(description="Serve Prometheus metrics of each role on a port of its own.")
    ] = True
    port: Annotated[
        int,
        Field(
            ge=0,
            le=65535,
            description="Port of the page that has the metrics of all processes of `llmserve up`, at "
            "`deployment.local.host`. Not set and taken by something else: the cluster goes without it, and "
            "says so. 0: no such page. In Kubernetes each pod has its own metrics on 9400.",
        ),
    ] = 9400
