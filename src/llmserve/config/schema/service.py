"""Sections `api`, `security`, `state` and `observability`: the cluster as a service."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from llmserve.config.schema.section import (
    AtStart,
    GiB,
    KeyUnit,
    Live,
    ManifestSection,
    Requests,
    Seconds,
    Tokens,
)

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?")
_DEFAULT_PORTS: Mapping[str, str] = MappingProxyType({"http": ":80", "https": ":443"})


class ResponseStoreConfig(ManifestSection):
    """The store of answers of `/v1/responses`."""

    enabled: bool = False
    """Answers are kept, so that `previous_response_id`, `background`, and fetching or cancelling by id work.
    Several apiservers share the answers in Redis and need `state.backend: redis`."""
    keep_seconds: Seconds = Field(default=86400.0, ge=1)
    """An answer is kept for this long."""
    memory_mib: Annotated[int, KeyUnit("MiB")] = Field(default=256, ge=1)
    """With `state.backend: memory`, answers take at most this much memory; the oldest are dropped first. A
    Redis server has a limit of its own."""


class Api(ManifestSection):
    """The HTTP interface that clients see. docs/compatibility.md compares it with `vllm serve`."""

    root_path: str | None = Field(default=None, pattern=r"^(/[A-Za-z0-9._~-]+)+$")
    """A proxy serves the API under this path, such as `/llm`, whether or not the proxy removes it from
    requests. `/docs` and `/openapi.json` use the path in their links."""
    public_docs: bool = False
    """`/docs`, `/redoc`, `/openapi.json` and `/version` need no key, even when `security.api_keys` has
    keys."""
    tokenizer_info: bool = False
    """The apiservers serve `/tokenizer_info`: the tokenizer's configuration and the chat template."""
    force_include_usage: bool = False
    """Every stream ends with its usage, as if each client had asked for it with `stream_options`."""
    sse_keep_alive_seconds: Annotated[int, KeyUnit("seconds")] = Field(default=0, ge=0, le=3600)
    """A stream of chat or text completions that has been quiet for this long gets a comment, so that proxies
    do not close it. 0 sends no comments."""
    stream_interval: Tokens | None = Field(default=None, ge=1, le=256)
    """An event of a stream carries at least this many tokens, except for the first and the last event. A
    request's own `stream_interval` may be larger. Without it, an event has one token, and requests that begin
    while the apiserver is too busy to be punctual get up to 8."""
    chat_template: str | None = Field(default=None, min_length=1)
    """This chat template replaces the model's own. It is Jinja text, or the path of a file that the
    apiservers can read."""
    chat_template_kwargs: dict[str, bool | int | float | str] = {}  # noqa: RUF012 - pydantic copies it
    """These arguments are passed to the chat template, such as `{enable_thinking: false}`. A request's own
    `chat_template_kwargs` take precedence."""
    thinking_budgets: dict[Literal["minimal", "low", "medium", "high", "xhigh", "max"], Tokens] = {  # noqa: RUF012 - pydantic copies it
        "minimal": 128,
        "low": 1024,
        "medium": 4096,
    }
    """A request with this `reasoning_effort`, and without a `thinking_token_budget`, thinks for at most this
    many tokens. With other efforts, the model thinks for as long as it does. It needs
    `engine.reasoning_parser`, and does not apply to models whose chat template takes the effort itself."""
    original_routes: bool | None = None
    """The apiservers also serve the routes of the original projects, such as `/generate`
    (docs/compatibility.md lists them). Without it, they do on one machine (`deployment.mode: local`) and not
    on Kubernetes."""
    response_store: ResponseStoreConfig = ResponseStoreConfig()


class ApiKey(ManifestSection):
    """A key and the tenant that it identifies. A tenant may have several keys."""

    tenant: str = Field(min_length=1)
    """The tenant that uses the key."""
    key: str | None = Field(default=None, min_length=1, repr=False)
    """The key itself. `key_env` is better, because it keeps secrets out of the file."""
    key_env: str | None = Field(default=None, pattern=_VARIABLE)
    """This environment variable of the apiserver holds the key."""
    admin: bool = False
    """The key may also use `/admin` paths and read the records of all requests
    (`/v1/requests/ID/explain`)."""
    adapters: tuple[str, ...] | None = Field(default=None, strict=False)
    """The key may use only the adapters of these names, and the model itself. Others are unknown to it.
    Without it, the key may use all."""
    max_priority: int | None = Field(default=None, ge=0)
    """Requests of the key may be moved ahead by at most this many steps of `priority`, by `service_tier` too.
    0 leaves them where they are. Without it, there is no limit."""
    kv_quota_gb: Annotated[GiB | None, AtStart(("kvmanager",))] = Field(default=None, gt=0)
    """The tenant's KV blocks may take this much in each storage class. Without it, they may take all that
    there is. Set it at one of the tenant's keys."""


def _origin(text: str) -> str:
    """Returns an origin as browsers write it: in lower case, and without the default port of its scheme."""
    lowered = text.lower()
    if text == "*":
        return text
    if not _ORIGIN.fullmatch(lowered):
        shape = "an origin is SCHEME://HOST or SCHEME://HOST:PORT, without a path, or '*' for all"
        raise PydanticCustomError("origin", "{text}", {"text": f"{text!r} is not an origin: {shape}"})
    return lowered.removesuffix(_DEFAULT_PORTS.get(lowered.partition("://")[0], ""))


class Security(ManifestSection):
    """Who may use the cluster, and which tenants share KV."""

    api_keys: Annotated[tuple[ApiKey, ...], Live(("apiserver",))] = Field(default=(), strict=False)
    """Clients send these keys as `Authorization: Bearer KEY`. Without keys, everybody may use the API, as
    tenant `default`."""
    cors_origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], Live(("apiserver",))] = (
        Field(default=(), strict=False)
    )
    """Pages of these origins (`https://chat.example.com`) may use the API in a browser. `*` allows all
    origins. Without origins, browsers let only pages of the API's own origin read its answers."""
    kv_sharing: Literal["tenant", "cluster"] = "tenant"
    """Who reuses the KV of equal prompts. With `tenant`, only the tenant itself does. With `cluster`, all
    tenants do, and the speed of an answer reveals whether another tenant has asked the same."""


class RedisServer(ManifestSection):
    """The Redis (or Valkey) server that routers share. It keeps a few kilobytes and needs no disk."""

    url: str = Field(pattern=r"^rediss?://[^\s/?#]+(/[0-9]+)?$")
    """The server's address is `redis://[USER@]HOST:PORT/DB`, or `rediss://` with TLS. Clusters with different
    `metadata.name` can share a server."""
    password_env: str | None = Field(default=None, pattern=_VARIABLE)
    """This environment variable holds the password, in the routers and in apiservers that keep responses."""


class State(ManifestSection):
    """The place of the state that routers share."""

    backend: Literal["memory", "redis"] = "memory"
    """`memory` keeps the state in the router, which is then the only one. `redis` keeps it in a Redis server,
    for several routers, or for one that keeps its shares and rates over a restart."""
    redis: RedisServer | None = None


class Tracing(ManifestSection):
    """Spans of requests (OpenTelemetry), from HTTP to the last token."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://[^/\s]+$")
    """Spans are sent to this address, as OTLP over gRPC: `http://HOST:PORT`, or `https://` for TLS. Without
    it, nothing is traced. Headers and certificates come from the environment (`OTEL_EXPORTER_OTLP_HEADERS`,
    `OTEL_EXPORTER_OTLP_CERTIFICATE`)."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """This share of requests is traced. A request with a W3C `traceparent` of its own is traced if that says
    so."""


class Observability(ManifestSection):
    """Logs, metrics and traces."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Live(("router", "apiserver", "worker"), at_start=("kvmanager",)),
    ] = "info"
    """Messages of at least this severity are logged."""
    log_format: Literal["human", "json"] = "human"
    """Lines of the logs are text for people, or one JSON object each. vLLM's own lines have the same
    format."""
    log_dir: str | None = Field(default=None, min_length=1)
    """Log files are in this directory. Without it, they are in `logs` in the run directory."""
    log_file_mib: Annotated[int, KeyUnit("MiB")] = Field(default=16, ge=1, le=65536)
    """`llmserve up` lets the log of a process grow to this size. A longer log is moved to `NAME.1.log` and
    replaces what was there. So a process has at most three such files, with `NAME.previous.log` of the run
    before, and a fourth while it is copied."""
    explain_requests: Annotated[Requests, Live(("apiserver",))] = Field(default=1000, ge=0, le=1_000_000)
    """Each apiserver remembers this many of the latest requests for `llmserve explain`, in at most 64 MiB. 0
    remembers none."""
    metrics: bool = True
    """Each role serves Prometheus metrics on a port of its own."""
    port: int = Field(default=9400, ge=0, le=65535)
    """`llmserve up` serves the metrics of all processes on one page, on this port of `deployment.local.host`.
    0 serves no such page. If the default port is taken, the cluster runs without the page and says so. In
    Kubernetes each pod has its own metrics on 9400."""
    tracing: Tracing = Tracing()
