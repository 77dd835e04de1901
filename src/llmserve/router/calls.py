"""The messages of apiserver sessions."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import grpc.aio

from llmserve.core.errors import InvalidRequest, LLMServeError, NotLeader
from llmserve.core.ids import ApiserverId, RequestId, WorkerId
from llmserve.core.tasks import TaskOwner
from llmserve.router.codec import decode_admit, decode_held
from llmserve.router.commands import OperatorCommands
from llmserve.router.controller import Controller
from llmserve.router.event_loop import EventLoop
from llmserve.router.events import Effect
from llmserve.router.leader.election import LeaderCheck
from llmserve.router.sessions import RouterSession
from llmserve.router.streams import RouterOutbox, SessionStream
from llmserve.rpc.codec import decode_outcome
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.models import decode_answering
from llmserve.rpc.permissions import check_name

_log = logging.getLogger(__name__)
_HELLO_TIMEOUT_SECONDS = 5.0

_Request = router_pb2.RouterSessionRequest
_Requests = AsyncIterator[router_pb2.RouterSessionRequests]
_Context = grpc.aio.ServicerContext[Any, Any]


class SessionCalls:
    """Life: converse, any number at a time -> aclose. sign_of_life_seconds: idle_seconds of each
    RouterOutbox."""

    def __init__(
        self,
        controller: Controller,
        event_loop: EventLoop,
        leader_check: LeaderCheck,
        commands: OperatorCommands,
        sign_of_life_seconds: float | None,
    ) -> None:
        self._controller, self._event_loop, self._leader_check = controller, event_loop, leader_check
        self._commands, self._sign_of_life_seconds = commands, sign_of_life_seconds
        self._readers = TaskOwner("router")

    async def aclose(self) -> None:
        """Ends the sessions. Apiservers keep what runs, and return to the next leader."""
        self._event_loop.streams.close()
        await self._readers.aclose()
        self._event_loop.spans.give_up()

    async def converse(
        self, requests: _Requests, context: _Context
    ) -> AsyncIterator[router_pb2.RouterSessionResponses]:
        hello, others = await _read_hello(requests)
        check_name(context, hello.apiserver_id)
        stream = self._open(hello)
        # The handler may be left at a yield when the peer is gone: gRPC tells this way, too.
        context.add_done_callback(lambda _: self._close(stream))  # type: ignore[arg-type]  # stub's own type
        reader = self._readers.spawn(
            f"session-{stream.session.apiserver_id}", self._read(others, requests, stream)
        )
        try:
            async for messages in stream.outbox:
                self._leader_check.check()  # what was decided in time is not to be said too late
                yield messages
        finally:
            reader.cancel()
            self._close(stream)

    def _open(self, hello: router_pb2.Hello) -> SessionStream:
        self._leader_check.check()
        apiserver_id = ApiserverId(hello.apiserver_id)
        held = [decode_held(message) for message in hello.held]
        session, effects = self._controller.open_session(apiserver_id, held)
        stream = SessionStream(session, RouterOutbox(self._sign_of_life_seconds))
        older = self._event_loop.streams.add(stream)
        stream.outbox.send_state(self._event_loop.cluster())
        if older:
            self._commands.left(apiserver_id)
            older.outbox.close()
        self._commands.joined(stream.outbox.send)
        _log.info("apiserver %s: session started, holds %d requests", apiserver_id, len(held))
        self._event_loop.apply(effects)
        return stream

    def _close(self, stream: SessionStream) -> None:
        """Idempotent."""
        apiserver_id = stream.session.apiserver_id
        stream.outbox.close()
        if self._event_loop.streams.drop(stream):
            self._commands.left(apiserver_id)
            given_back = len(stream.session.entries)
            _log.info("apiserver %s: session ended, %d requests given back", apiserver_id, given_back)
        with suppress(NotLeader), self._event_loop.deciding() as effects:  # the next leader counts anew
            effects += self._controller.close_session(stream.session)

    async def _read(self, first: Sequence[_Request], requests: _Requests, stream: SessionStream) -> None:
        """Ends the stream when the apiserver ends it, or when it sends what it must not. first: what came
        together with Hello."""
        error: LLMServeError | None = None
        try:
            self._receive_all(stream.session, first)
            async for batch in requests:
                self._receive_all(stream.session, batch.messages)
        except LLMServeError as wrong:
            error = wrong
        finally:
            stream.outbox.close(error)

    def _receive_all(self, session: RouterSession, messages: Sequence[_Request]) -> None:
        """What came together is answered together. Errors: those of the first message that is wrong, after
        the effects of those before it."""
        with self._event_loop.deciding() as effects:
            for message in messages:
                effects += self._receive(session, message)

    def _receive(self, session: RouterSession, message: _Request) -> list[Effect]:
        match message.WhichOneof("message"):
            case "admit":
                admit = decode_admit(message.admit)
                self._event_loop.spans.asked(session, message.admit)
                return self._controller.requests.admit(session, admit)
            case "first_token":
                name = RequestId(message.first_token.request_id)
                return self._controller.requests.first_token(session, name, message.age_seconds)
            case "progress":
                progress = message.progress
                name = RequestId(progress.request_id)
                return self._controller.requests.progress(session, name, progress.output_tokens)
            case "done":
                return self._done(session, message.done, message.age_seconds)
            case "worker_failed":
                return self._worker_failed(message.worker_failed)
            case "models":
                return self._controller.answers_models(session, decode_answering(message.models))
            case "answer":
                self._commands.answered(session.apiserver_id, message.answer)
                return []
            case other:
                raise InvalidRequest(f"a session message cannot be {other or 'empty'} here")

    def _done(self, session: RouterSession, done: router_pb2.Done, age_seconds: float) -> list[Effect]:
        outcome = decode_outcome(done.outcome)
        cached = done.cached_tokens if done.HasField("cached_tokens") else None
        handover = done.handover_seconds if done.HasField("handover_seconds") else None
        name = RequestId(done.request_id)
        return self._controller.requests.done(
            session, name, outcome, done.output_tokens, cached, handover, age_seconds
        )

    def _worker_failed(self, failed: router_pb2.WorkerFailed) -> list[Effect]:
        _log.warning("worker %s failed: %s", failed.worker_id, failed.reason)
        return self._controller.worker_failed(
            WorkerId(failed.worker_id), failed.epoch, failed.reason, stalled=failed.stalled
        )


async def _read_hello(requests: _Requests) -> tuple[router_pb2.Hello, Sequence[_Request]]:
    """Returns the first message of a session, and those that came with it. Errors: InvalidRequest when it is
    no Hello, or does not come."""
    try:
        async with asyncio.timeout(_HELLO_TIMEOUT_SECONDS):
            batch = await anext(aiter(requests), router_pb2.RouterSessionRequests())
    except TimeoutError as error:
        raise InvalidRequest(f"no Hello within {_HELLO_TIMEOUT_SECONDS:g} s") from error
    message, *others = batch.messages or [_Request()]
    if not message.HasField("hello") or not message.hello.apiserver_id:
        raise InvalidRequest("a session begins with Hello, which names the apiserver")
    return message.hello, others
