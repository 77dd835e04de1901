"""Sections `budgets`, `scheduling`, `security`, `state` and `observability`: the cluster as a service."""

from typing import Annotated, Literal

from pydantic import Field

from llmserve.config.knob import Planned, Section, Unit


class Budgets(Section):
    """What all running requests together may use."""

    max_tokens_in_flight: Annotated[
        int | None,
        Unit("tokens"),
        Planned("the fair-share scheduler"),
        Field(gt=0, description="Prompt and expected answer tokens of all running requests."),
    ] = None
    max_kv_io_gbps: Annotated[
        float | None,
        Unit("Gbit/s"),
        Field(
            gt=0,
            description="KV bytes that engines fetch from each other, of the whole cluster; each decode "
            "engine gets an equal part.",
        ),
    ] = None
    max_requests_in_flight: Annotated[
        int | None,
        Unit("requests"),
        Field(
            gt=0,
            description="Requests that run at the same time. Without it, what all decode engines hold.",
        ),
    ] = None


class Scheduling(Section):
    """Queueing, and when something counts as gone."""

    max_queued_requests: Annotated[
        int,
        Unit("requests"),
        Field(ge=0, description="Requests that may wait; one more is refused with 429."),
    ] = 1024
    queue_timeout_seconds: Annotated[
        float,
        Unit("seconds"),
        Field(gt=0, description="How long a request may wait before it is refused with 503."),
    ] = 60.0
    worker_heartbeat_seconds: Annotated[
        float, Unit("seconds"), Field(gt=0, description="How often a worker reports its load to the router.")
    ] = 1.0
    worker_expiry_seconds: Annotated[
        float,
        Unit("seconds"),
        Field(
            gt=0, description="A worker that was silent this long gets no requests until it is heard again."
        ),
    ] = 4.0
    request_timeout_seconds: Annotated[
        float,
        Unit("seconds"),
        Field(gt=0, description="How long a request may take in all, queueing included."),
    ] = 600.0


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
    kv_quota_gb: Annotated[
        float | None,
        Unit("GiB"),
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
        Field(
            strict=False,
            description="Keys that clients send as `Authorization: Bearer KEY`. Without any, everybody may "
            "use the API, as tenant `default`.",
        ),
    ] = ()
    kv_sharing: Annotated[
        Literal["none", "all"],
        Field(description="Whether tenants reuse each other's KV of equal prompts, which timing can betray."),
    ] = "none"


class State(Section):
    """Where the cluster's shared state is."""

    backend: Annotated[
        Literal["memory", "redis"],
        Planned("shared router state", available=("memory",)),
        Field(description="`memory`: in the router. `redis`: in a Redis server, for several routers."),
    ] = "memory"


class Observability(Section):
    """What the cluster tells about itself."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severity that is logged.")
    ] = "info"
    log_dir: Annotated[
        str | None,
        Field(
            min_length=1, description="Directory of the log files. Without it, `logs` in the run directory."
        ),
    ] = None
    metrics: Annotated[
        bool, Field(description="Serve Prometheus metrics of each role on a port of its own.")
    ] = True
