"""A response and the messages that led to it, as the text that a store keeps."""

import json
from typing import Any

from openai_harmony import Message
from pydantic_core import to_jsonable_python
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse


def encode(response: ResponsesResponse, messages: list[Any] | None) -> str:
    held = None if messages is None else [_plain(message) for message in messages]
    # Raw tokens of the prompt, on request: what goes on from the response needs them no more.
    answer = response.model_dump(mode="json", by_alias=True, exclude={"input_messages", "output_messages"})
    return json.dumps({"response": answer, "messages": held}, separators=(",", ":"))


def decode(text: str, *, harmony: bool) -> tuple[ResponsesResponse, list[Any] | None]:
    """harmony: messages are those of gpt-oss."""
    found = json.loads(text)
    messages = found["messages"]
    if messages is not None and harmony:
        messages = [Message.from_dict(message) for message in messages]
    return ResponsesResponse.model_validate(found["response"]), messages


def _plain(message: Any) -> Any:
    return message.to_dict() if isinstance(message, Message) else to_jsonable_python(message)
