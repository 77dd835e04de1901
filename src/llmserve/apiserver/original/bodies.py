"""What the original projects' clients send: bodies of vLLM's routes, in which fields may have other names."""

from types import MappingProxyType
from typing import Any

from pydantic import model_validator
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from llmserve.core.errors import InvalidRequest

_MAX_TOKENS = 128  # where the client names no number, as TorchWeave has it
# The originals' names of vLLM's fields.
_OTHER_NAMES = MappingProxyType(
    {"prompts": "prompt", "max_new_tokens": "max_tokens", "max_length": "max_tokens", "model_id": "model"}
)


class GenerateBody(CompletionRequest):
    """A body of `/v1/completions`, some of whose fields may have the originals' names."""

    max_tokens: int | None = _MAX_TOKENS
    prompts: list[str] | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None
    model_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def with_openai_s_names(cls, data: Any) -> Any:
        """Fills the fields that vLLM reads. Errors: InvalidRequest when two names of one field differ."""
        return _renamed(data) if isinstance(data, dict) else data


class ChatBody(ChatCompletionRequest):
    """A body of `/v1/chat/completions`. prompt: the message of the user, if there are no messages."""

    max_tokens: int | None = _MAX_TOKENS
    prompt: str | None = None
    max_new_tokens: int | None = None
    model_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def with_openai_s_names(cls, data: Any) -> Any:
        """Fills the fields that vLLM reads. Errors: InvalidRequest when two names of one field differ."""
        if not isinstance(data, dict):
            return data
        if isinstance(data.get("prompt"), str) and data.get("messages") is None:
            data = {**data, "messages": [{"role": "user", "content": data["prompt"]}]}
        return _renamed(data)


def _renamed(fields: dict[str, Any]) -> dict[str, Any]:
    renamed = dict(fields)
    for theirs, ours in _OTHER_NAMES.items():
        if (value := fields.get(theirs)) is None:
            continue
        if renamed.get(ours) not in (None, value):
            raise InvalidRequest(f"{theirs} and {ours} are one field here: send one of them", field=theirs)
        renamed[ours] = value
    return renamed


Body = GenerateBody | ChatBody


def of_one(body: Body) -> Body:
    """Errors: InvalidRequest for a body that asks for several answers."""
    prompts = body.prompt if isinstance(body, GenerateBody) else None
    several = isinstance(prompts, list) and len(prompts) > 1 and not isinstance(prompts[0], int)
    if several or body.n not in (None, 1):
        raise InvalidRequest("this route gives one answer", field="prompt" if several else "n")
    return body
