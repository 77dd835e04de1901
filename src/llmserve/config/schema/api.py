"""Section `api`: what clients meet at the HTTP port."""

from typing import Annotated

from pydantic import Field

from llmserve.config.schema.section import KeyUnit, ManifestSection


class ResponseStoreConfig(ManifestSection):
    """Answers of `/v1/responses` that are kept."""

    enabled: Annotated[
        bool,
        Field(
            description="Keep answers, so that `previous_response_id`, `background` and fetching or "
            "cancelling by id work. Several apiservers share them in Redis, and need `state.backend: redis`."
        ),
    ] = False
    keep_seconds: Annotated[
        float, KeyUnit("seconds"), Field(ge=1, description="How long an answer is kept.")
    ] = 86400.0
    memory_mib: Annotated[
        int,
        KeyUnit("MiB"),
        Field(
            ge=1,
            description="With `state.backend: memory`: how much is kept; the oldest go first. A Redis server "
            "has a limit of its own.",
        ),
    ] = 256


class Api(ManifestSection):
    """What clients meet at the HTTP port. docs/compatibility.md compares it with `vllm serve`."""

    root_path: Annotated[
        str | None,
        Field(
            pattern=r"^(/[A-Za-z0-9._~-]+)+$",
            description="Path under which a proxy serves the API, such as `/llm`, whether or not the proxy "
            "takes it off. `/docs` and `/openapi.json` name it.",
        ),
    ] = None
    public_docs: Annotated[
        bool,
        Field(
            description="`/docs`, `/redoc`, `/openapi.json` and `/version` need no key, although "
            "`security.api_keys` has some."
        ),
    ] = False
    tokenizer_info: Annotated[
        bool,
        Field(description="Serve `/tokenizer_info`: the tokenizer's configuration and the chat template."),
    ] = False
    force_include_usage: Annotated[
        bool,
        Field(
            description="End every stream with its usage, as if each client had asked for it with "
            "`stream_options`."
        ),
    ] = False
    sse_keep_alive_seconds: Annotated[
        int,
        KeyUnit("seconds"),
        Field(
            ge=0,
            le=3600,
            description="Send a comment on a stream of chat or text completions that has been quiet for so "
            "long, so that no proxy ends it. 0: none.",
        ),
    ] = 0
    chat_template: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Chat template in place of the model's own: its Jinja text, or the path of a file "
            "that the apiservers can read.",
        ),
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, bool | int | float | str],
        Field(
            description="Arguments of the chat template that hold unless a request's own "
            "`chat_template_kwargs` say otherwise, such as `{enable_thinking: false}`."
        ),
    ] = {}  # noqa: RUF012 - pydantic gives each instance its own
    response_store: Annotated[
        ResponseStoreConfig, Field(description="Answers of `/v1/responses` that are kept.")
    ] = ResponseStoreConfig()
