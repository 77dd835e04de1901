"""`/v1/responses` as OpenAI documents it, where vLLM's own differs: how its streams end."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.exceptions import VLLMError

from llmserve.apiserver.http.errors import ApiError, api_error_of
from llmserve.apiserver.responses.store import ResponseKey

_log = logging.getLogger(__name__)

_BEGINNING = ("response.created", "response.in_progress")


class _End(BaseModel):
    """The last event of a stream whose response is not complete."""

    type: Literal["response.incomplete", "response.failed"]
    sequence_number: int
    response: dict[str, Any]


class StreamedResponses(OpenAIServingResponses):
    """Ends the stream of a cut answer with `response.incomplete`, and of one that fails with
    `response.failed`."""

    async def responses_stream_generator(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """vLLM sends the first events before it asks the engine. They wait here for what the engine says, so
        that the gate can still answer a refusal with its status."""
        created: Any = None
        held: list[Any] = []
        number = 0
        try:
            async for event in super().responses_stream_generator(*args, **kwargs):
                number += 1
                if event.type in _BEGINNING:
                    created = created or event
                    held.append(event)
                    continue
                for one in (*held, _cut(event) if _is_cut(event) else event):
                    yield one
                held = []
        except Exception as error:  # the status has been sent: the stream itself must say it
            if created is None:
                raise
            if not isinstance(error, VLLMError):
                _log.exception("a stream of /v1/responses failed")
            for one in (*held, _failed(created, number, api_error_of(error))):
                yield one


def _is_cut(event: Any) -> bool:
    return bool(event.type == "response.completed" and event.response.status == "incomplete")


def _cut(event: Any) -> _End:
    return _End(
        type="response.incomplete",
        sequence_number=event.sequence_number,
        response=event.response.model_dump(mode="json", by_alias=True),
    )


def _failed(created: Any, number: int, problem: ApiError) -> _End:
    """created: the stream's first event."""
    error = {"code": _code(problem.status), "message": problem.message}
    response = created.response.model_dump(mode="json", by_alias=True)
    return _End(
        type="response.failed",
        sequence_number=number,
        response={**response, "status": "failed", "error": error},
    )


def _code(status: int) -> str:
    """Returns the name that OpenAI's API has for an error of this status."""
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_exceeded"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_prompt"


_MOST_KEPT = 128


class ResponseEvents:
    def __init__(self) -> None:
        self.ended = False
        self._events: list[Any] = []
        self._changed = asyncio.Event()

    def add(self, event: Any) -> None:
        self._events.append(event)
        self._wake()

    def end(self) -> None:
        """Called by the producer after the last event, also when it fails."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, start: int) -> AsyncIterator[Any]:
        """Yields the events from this number on, until they end."""
        index = max(0, start)
        while True:
            while index < len(self._events):
                yield self._events[index]
                index += 1
            if self.ended:
                return
            await self._changed.wait()


class RecentEvents:
    """The events of the latest streams. A stream that goes on is never dropped."""

    def __init__(self) -> None:
        self._kept: OrderedDict[ResponseKey, ResponseEvents] = OrderedDict()

    def open(self, key: ResponseKey) -> ResponseEvents:
        events = self._kept[key] = ResponseEvents()
        self._kept.move_to_end(key)
        ended = [one for one, held in self._kept.items() if held.ended]
        for one in ended[: max(0, len(self._kept) - _MOST_KEPT)]:
            del self._kept[one]
        return events

    def get(self, key: ResponseKey) -> ResponseEvents | None:
        return self._kept.get(key)
