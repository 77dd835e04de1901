"""vLLM's handlers of chats and completions, with two things of ours: the priority of a request's
`service_tier`, and the text events of its stream."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import Request
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.serve.utils.api_utils import should_include_usage
from vllm.outputs import RequestOutput

from llmserve.apiserver.http.scope import current_scope
from llmserve.apiserver.http.service_tier import grant_tier, with_tier


class ChatHandler(OpenAIServingChat):
    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: Request | None = None
    ) -> Any:
        tier = grant_tier(request)
        return with_tier(await super().create_chat_completion(request, raw_request), tier)

    def chat_completion_stream_generator(
        self,
        request: ChatCompletionRequest,
        result_generator: AsyncIterator[RequestOutput],
        *more: Any,
        **named: Any,
    ) -> AsyncGenerator[str, None]:
        events = current_scope().text_events
        if (
            events is not None
            and self.parser_cls is None
            and _repeats(request, self.enable_force_include_usage)
        ):
            result_generator = events.others(result_generator, '"delta":{"content":')
        made: AsyncGenerator[str, None] = super().chat_completion_stream_generator(
            request, result_generator, *more, **named
        )
        return made


class CompletionHandler(OpenAIServingCompletion):
    async def create_completion(self, request: CompletionRequest, raw_request: Request | None = None) -> Any:
        tier = grant_tier(request)
        return with_tier(await super().create_completion(request, raw_request), tier)

    def completion_stream_generator(
        self,
        request: CompletionRequest,
        engine_inputs: list[Any],
        result_generator: AsyncIterator[tuple[int, RequestOutput]],
        *more: Any,
        **named: Any,
    ) -> AsyncGenerator[str, None]:
        events = current_scope().text_events
        if (
            events is not None
            and len(engine_inputs) == 1
            and _repeats(request, self.enable_force_include_usage)
        ):
            result_generator = events.others(result_generator, '"text":')
        made: AsyncGenerator[str, None] = super().completion_stream_generator(
            request, engine_inputs, result_generator, *more, **named
        )
        return made


def _repeats(request: ChatCompletionRequest | CompletionRequest, forces_usage: bool) -> bool:
    """Returns whether the events of outputs that are only text differ in nothing else."""
    _, continuous_usage = should_include_usage(request.stream_options, forces_usage)
    plain = not (request.echo or request.return_token_ids or continuous_usage)
    return plain and request.n in (None, 1)
