"""Sections `security`, `state` and `observability`: the cluster as a service."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from llmserve.config.schema.section import AtStart, KeyUnit, Live, ManifestSection


class Tracing(ManifestSection):
    """Spans of requests (OpenTelemetry), from HTTP to the last token."""

    endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^/\s]+$",
            description="Where spans are sent, as OTLP over gRPC: `http://HOST:PORT`; `https://` for TLS. "
            "Without it nothing is traced. Headers and certificates are read from the environment "
            "(`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_CERTIFICATE`).",
        ),
    ] = None
    sample_ratio: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of requests that are traced. A request with a W3C `traceparent` of its own is "
            "traced if that says so.",
        ),
    ] = 1.0


class ApiKey(ManifestSection):
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
        KeyUnit("GiB"),
        AtStart(("kvmanager",)),
        Field(
            gt=0,
            description="What the tenant's KV blocks may take in each storage class. Without it, what there "
            "is. Say it with one of the tenant's keys.",
        ),
    ] = None


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?")
_DEFAULT_PORTS: Mapping[str, str] = MappingProxyType({"http": ":80", "https": ":443"})


def _origin(text: str) -> str:
    """An origin as browsers write it: in lower case, and without the port that its scheme has anyway."""
    lowered = text.lower()
    if text == "*":
        return text
    if not _ORIGIN.fullmatch(lowered):
        shape = "an origin is SCHEME://HOST or SCHEME://HOST:PORT, without a path, or '*' for all"
        raise PydanticCustomError("origin", "{text}", {"text": f"{text!r} is not an origin: {shape}"})
    return lowered.removesuffix(_DEFAULT_PORTS.get(lowered.partition("://")[0], ""))


class Security(ManifestSection):
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
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_origin)], ...],
        Live(("apiserver",)),
        Field(
            strict=False,
            description="Origins (`https://chat.example.com`) whose pages may use the API in a browser. `*`: "
            "all. Without any, browsers let only pages of the API's own origin read its answers.",
        ),
    ] = ()
    kv_sharing: Annotated[
        Literal["tenant", "cluster"],
        Field(
            description="Who reuses the KV of equal prompts. `tenant`: only the tenant itself. `cluster`: "
            "all, and how fast an answer comes betrays whether another tenant has asked the same."
        ),
    ] = "tenant"


class RedisServer(ManifestSection):
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
            description="Environment variable that holds the password: of the routers, and of apiservers "
            "that keep responses.",
        ),
    ] = None


class State(ManifestSection):
    """Where the state is that routers share."""

    backend: Annotated[
        Literal["memory", "redis"],
        Field(
            description="`memory`: in the router, which is the only one. `redis`: in a Redis server, for "
            "several routers, or for one that goes on with its shares and rates after a restart."
        ),
    ] = "memory"
    redis: Annotated[RedisServer | None, Field(description="With `backend: redis`.")] = None


class Observability(ManifestSection):
    """What the cluster tells about itself."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Live(("router", "apiserver", "worker"), at_start=("kvmanager",)),
        Field(description="Least severity that is logged."),
    ] = "info"
    log_format: Annotated[
        Literal["human", "json"],
        Field(description="Lines of the logs: for people, or one JSON object each. vLLM's own follow."),
    ] = "human"
    log_dir: Annotated[
        str | None,
        Field(
            min_length=1, description="Directory of the log files. Without it, `logs` in the run directory."
        ),
    ] = None
    log_file_mib: Annotated[
        int,
        KeyUnit("MiB"),
        Field(
            ge=1,
            le=65536,
            description="How long `llmserve up` lets the log of a process become. A longer one is moved to "
            "`NAME.1.log`, in place of what was there; so a process has three such files at most, with "
            "the one of the run before, `NAME.previous.log`, and a fourth while it is copied.",
        ),
    ] = 16
    explain_requests: Annotated[
        int,
        KeyUnit("requests"),
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
    tracing: Annotated[Tracing, Field(description="What becomes of each request, as spans.")] = Tracing()
