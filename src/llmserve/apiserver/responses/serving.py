"""`/v1/responses` with a store behind it, where vLLM has dictionaries of one process that only grow."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any

from fastapi import Request
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from llmserve.apiserver.http.errors import as_serving_error
from llmserve.apiserver.http.scope import current_scope
from llmserve.apiserver.http.service_tier import grant_tier
from llmserve.apiserver.responses.scope import ResponseScope, ScopedDict, decode, encode
from llmserve.apiserver.responses.store import ResponseKey, ResponseStage, ResponseStore
from llmserve.apiserver.responses.streams import RecentEvents, ResponseEvents, StreamedResponses
from llmserve.core.errors import StateUnavailable
from llmserve.core.tasks import TaskOwner

_log = logging.getLogger(__name__)

_LEASE_SECONDS = 10.0
_RENEW_SECONDS = 1.0  # and so long it takes at most until a cancellation elsewhere is heard of here
_UNDER_WAY = ("queued", "in_progress")


class ResponsesHandler(StreamedResponses):
    """Made by `keep_in`, of vLLM's own."""

    def keep_in(self, store: ResponseStore | None) -> None:
        """Sets the store. Called once, before the first request, inside a running loop. None: nothing is
        kept."""
        self._store, self._owner = store, TaskOwner("responses")
        self.enable_store = store is not None
        self.response_store = ScopedDict(lambda: _scope().responses)
        self.msg_store = ScopedDict(lambda: _scope().messages)
        self._background: dict[ResponseKey, asyncio.Task[None]] = {}
        self._events = RecentEvents()

    def knows(self, response_id: str) -> bool:
        """Returns whether the caller's response of this id is made here, or its events are kept here."""
        key = _key(response_id)
        return key in self._background or self._events.get(key) is not None

    # -- what clients ask for

    async def create_responses(self, request: ResponsesRequest, raw_request: Request | None = None) -> Any:
        request.service_tier = grant_tier(request)
        if previous := request.previous_response_id:
            made_by = await self._fetch(previous)
            if made_by not in ("", self._model):
                text = f"{previous} is of model {made_by}, and goes on with no other one"
                return self._refusal(text, "previous_response_id")
        began = _scope().began = asyncio.get_running_loop().create_future()
        made = await super().create_responses(request, raw_request)
        if request.background and not isinstance(made, ErrorResponse):
            await began
        return made

    def _validate_create_responses_input(self, request: ResponsesRequest) -> ErrorResponse | None:
        needs = [name for name in ("background", "previous_response_id") if getattr(request, name)]
        if needs and not self.enable_store:
            return self._refusal(f"{needs[0]} needs api.response_store in the manifest", needs[0])
        error: ErrorResponse | None = super()._validate_create_responses_input(request)
        return error

    async def retrieve_responses(
        self, response_id: str, starting_after: int | None, stream: bool | None
    ) -> Any:
        await self._fetch(response_id)
        found = response_id in _scope().responses
        if found and stream and self._events.get(_key(response_id)) is None:
            return self._refusal(f"no stream of {response_id} is kept here; ask without stream", "stream")
        return await super().retrieve_responses(response_id, starting_after, stream)

    async def cancel_responses(self, response_id: str) -> ErrorResponse | ResponsesResponse:
        """Cancels a response. One that another process makes ends within _RENEW_SECONDS."""
        key, scope = _key(response_id), _scope()
        made_by = await self._fetch(response_id)
        response = scope.responses.get(response_id)
        if self._store is not None and response is not None and response.status in _UNDER_WAY:
            cancelled = response.model_copy(update={"status": "cancelled"})
            text = encode(cancelled, scope.messages.get(response_id), made_by)
            if await self._store.cancel(key, text):
                if task := self._background.get(key):
                    task.cancel()
                return cancelled
            await self._fetch(response_id)  # it has ended meanwhile
        answer: ErrorResponse | ResponsesResponse = await super().cancel_responses(response_id)
        return answer

    @property
    def _model(self) -> str:
        name: str = self.models.model_name()
        return name

    async def _fetch(self, response_id: str) -> str:
        """Puts the tenant's response into this request's scope. Returns the name of its model; empty: it is
        not known. Errors: StateUnavailable as vLLM's."""
        if self._store is None:
            return ""
        try:
            stored = await self._store.get(_key(response_id))
        except StateUnavailable as error:
            raise _early(error) from error
        if stored is None:
            return ""
        try:
            response, messages, model = decode(stored.text, harmony=self.use_harmony)
        except ValueError:
            _log.warning("response %s was kept by another release, and cannot be read", response_id)
            return ""
        if stored.stage is ResponseStage.LOST:
            response.status = "failed"
        scope = _scope()
        scope.responses[response_id] = response
        if messages is not None:
            scope.messages[response_id] = messages
        return model

    def _refusal(self, message: str, parameter: str) -> ErrorResponse:
        error: ErrorResponse = self.create_error_response(
            err_type="invalid_request_error", message=message, param=parameter
        )
        return error

    # -- what becomes of an answer

    async def responses_full_generator(self, request: ResponsesRequest, *args: Any, **kwargs: Any) -> Any:
        """Keeps the response. Streams end here too."""
        answer = await super().responses_full_generator(request, *args, **kwargs)
        if request.store and isinstance(answer, ResponsesResponse):
            await self._keep(request, answer)
        return answer

    async def _keep(self, request: ResponsesRequest, response: ResponsesResponse) -> None:
        """Stores a response. The client gets its answer even when that fails."""
        if self._store is None:
            return
        key, text = _key(response.id), encode(response, _scope().messages.get(response.id), self._model)
        try:
            if request.background:
                await self._store.end(key, text)
            else:
                await self._store.put(key, text)
        except StateUnavailable as error:
            _log.warning("response %s is not kept: %s", response.id, error.message)

    # -- the background

    async def _run_background_request(self, request: ResponsesRequest, *args: Any, **kwargs: Any) -> None:
        await self._in_background(request, super()._run_background_request(request, *args, **kwargs))

    async def _run_background_request_stream(
        self, request: ResponsesRequest, *args: Any, **kwargs: Any
    ) -> None:
        events = self._events.open(_key(request.request_id))
        source = self.responses_stream_generator(request, *args, **kwargs)
        try:
            await self._in_background(request, _feed(events, source))
        finally:
            events.end()

    async def responses_background_stream_generator(
        self, response_id: str, starting_after: int | None = None
    ) -> AsyncGenerator[Any, None]:
        """Ends with the stream in any case: vLLM's own waits for `response.completed` alone."""
        events = self._events.get(_key(response_id))
        if events is not None:
            async for event in events.follow(0 if starting_after is None else starting_after + 1):
                yield event

    async def _in_background(self, request: ResponsesRequest, work: Coroutine[Any, Any, None]) -> None:
        key, task = _key(request.request_id), asyncio.current_task()
        assert task is not None
        self._background[key] = task
        try:
            if await self._begin(key):
                await self._watched(key, task, work)
                await self._end_if_failed(key)
            else:
                work.close()
        finally:
            if self._background.get(key) is task:
                del self._background[key]

    async def _begin(self, key: ResponseKey) -> bool:
        """Stores a response that begins. The client is answered afterwards, so that its next request finds
        it."""
        scope = _scope()
        assert self._store is not None
        assert scope.began is not None
        error: Exception | None = None
        try:
            await self._store.begin(key, self._text_of(key), _LEASE_SECONDS)
        except Exception as reason:
            error = _early(reason)
        if not scope.began.done():  # the client may be gone
            scope.began.set_exception(error) if error else scope.began.set_result(None)
        return error is None

    async def _watched(
        self, key: ResponseKey, task: asyncio.Task[None], work: Coroutine[Any, Any, None]
    ) -> None:
        watch = self._owner.spawn(f"watch {key.response_id}", self._watch(key, task))
        try:
            await work
        except Exception as error:
            _log.warning("response %s failed in the background: %s", key.response_id, error)
        finally:
            watch.cancel()

    async def _watch(self, key: ResponseKey, task: asyncio.Task[None]) -> None:
        """Renews the lease of a response until this is cancelled, or the response is kept. Cancels `task`
        when the response was cancelled or dropped."""
        assert self._store is not None
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            try:
                if not await self._store.renew(key, _LEASE_SECONDS):
                    stored = await self._store.get(key)
                    if stored is None or stored.stage is not ResponseStage.ENDED:
                        task.cancel()
                    return
            except StateUnavailable as error:
                _log.warning("response %s goes on unseen: %s", key.response_id, error.message)

    async def _end_if_failed(self, key: ResponseKey) -> None:
        response = _scope().responses[key.response_id]
        if self._store is None or response.status not in (*_UNDER_WAY, "failed"):
            return
        response.status = "failed"
        try:
            await self._store.end(key, self._text_of(key))
        except StateUnavailable as error:
            _log.warning("that response %s failed is not kept: %s", key.response_id, error.message)

    def _text_of(self, key: ResponseKey) -> str:
        scope = _scope()
        return encode(scope.responses[key.response_id], scope.messages.get(key.response_id), self._model)

    async def aclose(self) -> None:
        """After the last request. Idempotent."""
        for task in list(self._background.values()):
            task.cancel()
        await asyncio.gather(*self._background.values(), return_exceptions=True)
        await self._owner.aclose()


def _scope() -> ResponseScope:
    return current_scope().responses


def _key(response_id: str) -> ResponseKey:
    return ResponseKey(current_scope().tenant, response_id)


def _early(error: Exception) -> Exception:
    """Returns an error as vLLM's layer expects it, and leaves it for the gate, which adds Retry-After."""
    current_scope().early_error = serving_error = as_serving_error(error)
    return serving_error


async def _feed(events: ResponseEvents, source: AsyncIterator[Any]) -> None:
    async for event in source:
        events.add(event)
