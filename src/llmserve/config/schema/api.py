"""Section `api`: the HTTP interface that clients see."""

from typing import Annotated

from pydantic import Field

from llmserve.config.schema.section import KeyUnit, ManifestSection, Seconds


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
    chat_template: str | None = Field(default=None, min_length=1)
    """This chat template replaces the model's own. It is Jinja text, or the path of a file that the
    apiservers can read."""
    chat_template_kwargs: dict[str, bool | int | float | str] = {}  # noqa: RUF012 - pydantic copies it
    """These arguments are passed to the chat template, such as `{enable_thinking: false}`. A request's own
    `chat_template_kwargs` take precedence."""
    response_store: ResponseStoreConfig = ResponseStoreConfig()
