"""`/v1/messages` as Anthropic documents it, where vLLM's own differs."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.exceptions import VLLMError

from llmserve.apiserver.http.errors import ApiError, ErrorForm, api_error_in, body_of
from llmserve.apiserver.http.scope import current_scope

# How vLLM's chat layer begins a chunk that is an error, and its converter an event that is one.
_ERROR_CHUNK = 'data: {"error"'
_ERROR_EVENT = "event: error\n"


class MessagesHandler(AnthropicServingMessages):
    """Continues a last message of the assistant, and ends a stream that fails with the documented event."""

    @classmethod
    def to_chat_completion_request(cls, anthropic_request: Any, **options: Any) -> Any:
        request = super().to_chat_completion_request(anthropic_request, **options)
        if request.messages and _is_begun_answer(request.messages[-1]):
            request.add_generation_prompt, request.continue_final_message = False, True
        return request

    async def create_messages(self, request: Any, raw_request: Request | None = None) -> Any:
        """vLLM's route logs a traceback of what is raised, even for each request that an overload refuses."""
        try:
            return await super().create_messages(request, raw_request)
        except VLLMError as error:
            return self.create_error_response(error)

    async def message_stream_converter(
        self, generator: AsyncGenerator[str, None]
    ) -> AsyncGenerator[str, None]:
        """vLLM's converter expects the chunks of an answer: it is not shown an error among them."""
        chunks = _Chunks(generator)
        problem: ApiError | None = None
        async for event in super().message_stream_converter(chunks):
            if event.startswith(_ERROR_EVENT):  # the converter itself has failed
                problem = _api_error_in(event.removeprefix(_ERROR_EVENT))
            else:
                yield event
        if problem := problem or chunks.problem:
            body = body_of(problem, ErrorForm.ANTHROPIC, current_scope().request_id)
            yield f"{_ERROR_EVENT}data: {json.dumps(body)}\n\n"


def _is_begun_answer(message: Any) -> bool:
    """Returns whether a last message is text of the assistant. A message with calls of tools is complete as
    it is."""
    return message["role"] == "assistant" and bool(message.get("content")) and not message.get("tool_calls")


class _Chunks:
    """The chunks of an answer up to the first that is an error, which is kept as `problem`."""

    def __init__(self, source: AsyncGenerator[str, None]) -> None:
        self._source = source
        self.problem: ApiError | None = None

    async def __aiter__(self) -> AsyncIterator[str]:
        async with aclosing(self._source) as source:
            async for chunk in source:
                if chunk.startswith(_ERROR_CHUNK):
                    self.problem = _api_error_in(chunk)
                    return
                yield chunk


def _api_error_in(event: str) -> ApiError | None:
    data = event.removeprefix("data:").strip()
    return api_error_in(json.loads(data)["error"].get("code", 500), data.encode())
