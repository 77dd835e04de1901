"""Sections `api`, `state` and `observability`: the cluster as a service."""

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from llmserve.config.schema.section import KeyUnit, Live, ManifestSection, Requests, Seconds, Tokens

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_FIRST_PARTS = ("admin", "docs", "models", "v1", "v2")


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
    requests. `/docs` and `/openapi.json` use the path in their links. It does not begin as paths of the API
    do, such as `/v1`."""
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

    @field_validator("root_path")
    @classmethod
    def _no_path_of_the_api(cls, path: str | None) -> str | None:
        """Below such a root, a path that was checked would be another one without the root."""
        if path is not None and path.split("/")[1] in _FIRST_PARTS:
            text = f"{path} is where paths of the API begin: use another one, such as /llm"
            raise PydanticCustomError("root_path", "{text}", {"text": text})
        return path


class RedisServer(ManifestSection):
    """The Redis (or Valkey) server that routers share. It keeps a few kilobytes and needs no disk."""

    url: str = Field(pattern=r"^rediss?://[^\s/?#]+(/[0-9]+)?$")
    """The server's address is `redis://[USER@]HOST:PORT/DB`, or `rediss://` with TLS. Clusters with different
    `metadata.name` can share a server."""
    ca: str | None = Field(default=None, pattern=r"^/")
    """With `rediss://`, the server's certificate must come from an authority in this file (PEM, an absolute
    path). Without it, authorities that the system trusts count."""
    password_env: str | None = Field(default=None, pattern=_VARIABLE)
    """This environment variable holds the password, in the routers, and in apiservers that keep responses or
    have their keys there."""


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
