"""The stored responses that one HTTP request uses.

vLLM's handler looks responses up at once and by their id alone, in dictionaries. In their place it gets
dictionaries of the ResponseScope of the request that asks, which is filled from the store before. Nothing
stays in this process, and nobody sees what is another tenant's.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from openai_harmony import Message
from pydantic_core import to_jsonable_python
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse


@dataclass(slots=True)
class ResponseScope:
    """responses, messages: by response id. began: whether the background has begun, or why it could not."""

    responses: dict[str, Any] = field(default_factory=dict)
    messages: dict[str, Any] = field(default_factory=dict)
    began: asyncio.Future[None] | None = None


class ScopedDict(MutableMapping[str, Any]):
    """A dictionary that is another one for each request."""

    def __init__(self, current: Callable[[], dict[str, Any]]) -> None:
        self._current = current

    def __getitem__(self, key: str) -> Any:
        return self._current()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._current()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._current()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current())

    def __len__(self) -> int:
        return len(self._current())


def encode(response: ResponsesResponse, messages: list[Any] | None, model: str) -> str:
    """Returns the text by which a response is kept. model: the model that made it; the response itself has
    the name of an adapter, if it was made with one."""
    held = None if messages is None else [_plain(message) for message in messages]
    # Raw tokens of the prompt, on request: what goes on from the response needs them no more.
    answer = response.model_dump(mode="json", by_alias=True, exclude={"input_messages", "output_messages"})
    return json.dumps({"response": answer, "messages": held, "model": model}, separators=(",", ":"))


def decode(text: str, *, harmony: bool) -> tuple[ResponsesResponse, list[Any] | None, str]:
    """Returns a response, its messages and its model; that is empty when an earlier release has kept it.
    harmony: messages are those of gpt-oss."""
    found = json.loads(text)
    messages = found["messages"]
    if messages is not None and harmony:
        messages = [Message.from_dict(message) for message in messages]
    return ResponsesResponse.model_validate(found["response"]), messages, found.get("model", "")


def _plain(message: Any) -> Any:
    return message.to_dict() if isinstance(message, Message) else to_jsonable_python(message)
