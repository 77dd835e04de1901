"""The routes of most requests, without what FastAPI and vLLM do around them to no effect.

    fields of the body -> vLLM's type of request -> vLLM's route -> its answer, piece by piece

FastAPI works out dependencies that are the same each time; vLLM's and Starlette's wrappers of a route make
two tasks more, and one call more for each piece. A body whose fields are wrong is refused here; one that is
not fine for another reason goes to the application, which says so in its own words. What is raised here is
answered by the application's handlers, within which this runs.
"""

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmserve.apiserver.http.body import FIELDS, replay
from llmserve.apiserver.http.scope import current_scope
from llmserve.apiserver.http.text_events import TextEvents
from llmserve.core.tasks import first_done

HOT_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})


@dataclass(frozen=True, slots=True)
class _HotRoute:
    """body: FastAPI's field, which checks a body. answer: vLLM's function, without its wrappers."""

    body: Any
    answer: Callable[[Any, Request], Awaitable[Response]]


class HotRoutes:
    """An ASGI application. app: answers all that is not hot, or not fine. text_events: whether events of a
    stream may be sent past the generator that makes the others."""

    def __init__(self, app: ASGIApp, routes: Iterable[Any], *, text_events: bool) -> None:
        self._app, self._text_events = app, text_events
        self._routes = {
            route.path: _HotRoute(route.body_field, inspect.unwrap(route.endpoint))
            for route in routes
            if route.path in HOT_PATHS and "POST" in route.methods
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or scope["method"] != "POST" or not _is_json(scope):
            await self._app(scope, receive, send)
            return
        first = await receive()
        try:
            request, errors = route.body.validate(_object(first), loc=("body",))
        except Exception:  # whatever is wrong with it, the application finds it again
            await self._app(scope, replay(first, receive), send)
            return
        if errors:
            raise RequestValidationError(errors)
        # In a task of its own: a token resumes only what is in there.
        answering = self._answer(route, request, scope, receive, send)
        answer, _ = await first_done(scope["path"], answering, _gone(receive))
        if not answer.cancelled():
            answer.result()

    async def _answer(
        self, route: _HotRoute, request: Any, scope: Scope, receive: Receive, send: Send
    ) -> None:
        events = current_scope().text_events = TextEvents(send) if self._text_events else None
        response = await route.answer(request, Request(scope, receive))
        if not isinstance(response, StreamingResponse):
            await response(scope, receive, send)
            return
        status, headers = response.status_code, response.raw_headers
        await send({"type": "http.response.start", "status": status, "headers": headers})
        async for piece in cast("AsyncIterable[str]", response.body_iterator):  # as vLLM makes it
            if events is not None:
                events.last_event = piece
            await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _object(first: Message) -> dict[str, Any]:
    """Errors: ValueError for what is no JSON, or no object."""
    fields: dict[str, Any] | None = first[FIELDS]
    if fields is None:
        raise ValueError("the body is no JSON object")
    return fields


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_json(scope: Scope) -> bool:
    """As vLLM's validate_json_request asks for it."""
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return len(kinds) == 1 and kinds[0].lower().partition(b";")[0] == b"application/json"
