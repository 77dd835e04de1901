"""One way to serve: health, reflection, our options, and our errors mapped to status."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_reflection.v1alpha import reflection

from llmserve.core.errors import LLMServeError, StartFailed
from llmserve.rpc.audit import call_ended, call_failed
from llmserve.rpc.client import KEEPALIVE_SECONDS, SHARED_OPTIONS, TRACEPARENT
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.permissions import check_permission, is_open
from llmserve.rpc.status import code_of, trailing_metadata
from llmserve.rpc.wires.tls import server_tls

_log = logging.getLogger(__name__)

_SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *SHARED_OPTIONS,
    # A port that another process holds must fail at start, not be shared in silence.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
)

# The streams that raise none of our errors. Every token passes them, so nothing is wrapped around them.
_RAISES_NOTHING = frozenset({"/llmserve.v1.Worker/Session"})
_KINDS_OF_CALLS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class RpcServer:
    """Life: add (each service) -> start -> set_serving ... -> aclose. `aclose` is idempotent. credentials: by
    which callers are checked, before anything of their messages is read."""

    def __init__(self, listen: str, credentials: Credentials = NO_CREDENTIALS) -> None:
        self._listen, self._credentials = listen, credentials
        interceptors = [_CallerCheck(credentials), _ErrorMapper()]
        self._server = grpc.aio.server(interceptors=interceptors, options=_SERVER_OPTIONS)
        self._health = HealthServicer()
        self._names: list[str] = []
        self._is_serving = False

    def add(self, register: Callable[[Any, grpc.aio.Server], None], servicer: Any, service_name: str) -> None:
        """register: the generated add_XServicer_to_server; service_name: 'llmserve.v1.Router'."""
        register(servicer, self._server)
        self._names.append(service_name)

    async def start(self, *, is_serving: bool = True) -> int:
        """Binds and serves; returns the port. is_serving: as for set_serving. Errors: StartFailed when the
        address is taken."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*self._names, HEALTH_NAME, reflection.SERVICE_NAME), self._server
        )
        try:
            port = self._add_port()
        except RuntimeError as error:
            raise StartFailed(f"cannot listen on {self._listen}: {error}") from error
        await self.set_serving(is_serving)
        await self._server.start()
        return port

    def _add_port(self) -> int:
        """Errors: RuntimeError."""
        if self._credentials.certificates is None:
            return int(self._server.add_insecure_port(self._listen))
        return int(self._server.add_secure_port(self._listen, server_tls(self._credentials.certificates)))

    async def set_serving(self, serving: bool, service_name: str | None = None) -> None:
        """Sets what the standard health service answers for a service; None: for the whole server and each
        service."""
        status = health_pb2.HealthCheckResponse
        value = status.SERVING if serving else status.NOT_SERVING
        if service_name is None:
            self._is_serving = serving
        for name in ("", *self._names) if service_name is None else (service_name,):
            await self._health.set(name, value)

    def is_serving(self) -> bool:
        """Returns what the health service answers for the whole server."""
        return self._is_serving

    async def aclose(self, grace_seconds: float = 0.0) -> None:
        """Refuses new calls at once, lets running ones go on for the grace, then cancels them."""
        self._is_serving = False
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)


class _CallerCheck(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Refuses calls of strangers, and those that are not for the caller's role."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method, caller = handler_call_details.method, None
        try:
            if not is_open(method):
                caller = self._credentials.caller_of(handler_call_details.invocation_metadata)
                if caller is not None:
                    check_permission(caller, method)
        except LLMServeError as error:
            return _refusing(error, method)
        handler = await continuation(handler_call_details)
        if handler is None or caller is None or self._credentials.certificates is None:
            return handler
        return _proven(handler, partial(self._credentials.check_certificate, caller), method)


def _proven(handler: Any, check: Callable[[Iterable[bytes]], None], name: str) -> Any:
    """Returns a handler that begins with a check of the caller's certificate: interceptors do not see the
    connection. check: takes the URIs in it. name: of the method, for the audit log."""
    kind = next(kind for kind in _KINDS_OF_CALLS if getattr(handler, kind) is not None)
    method = getattr(handler, kind)

    async def answer(request: Any, context: Any) -> Any:
        await _check_peer(context, check, name)
        return await method(request, context)

    async def stream(request: Any, context: Any) -> None:
        """Writes what a generator would yield: with one around the other, every token would pass both."""
        await _check_peer(context, check, name)
        async for response in method(request, context):
            await context.write(response)

    return handler._replace(**{kind: stream if handler.response_streaming else answer})


async def _check_peer(context: Any, check: Callable[[Iterable[bytes]], None], name: str) -> None:
    try:
        check(context.auth_context().get("peer_uri", ()))
    except LLMServeError as error:
        await _abort(context, error, name)


def _refusing(error: LLMServeError, name: str) -> Any:
    """Returns a handler that ends a call of any kind at once: one of streams waits for no message."""

    async def refuse(_: Any, context: Any) -> AsyncIterator[Any]:
        await _abort(context, error, name)
        yield  # never reached; it makes this a stream

    return grpc.stream_stream_rpc_method_handler(refuse)


class _ErrorMapper(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Turns LLMServeError raised by a servicer into its gRPC status."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
            return None
        method = handler_call_details.method
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                _mapped_unary(handler.unary_unary, method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if not method.startswith("/llmserve.") or method in _RAISES_NOTHING:
            return handler
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                _mapped_stream(handler.unary_stream, method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(
                _mapped_stream(handler.stream_stream, method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return handler


def _mapped_unary(method: Any, name: str) -> Any:
    """name: that of the method in the proto."""

    async def call(request: Any, context: Any) -> Any:
        result = "ok"
        try:
            return await method(request, context)
        except LLMServeError as error:
            result = type(error).__name__
            return await _abort(context, error, name)
        finally:
            call_ended(name, request, context, result)

    return call


def _mapped_stream(method: Any, name: str) -> Any:
    """name: that of the method in the proto."""

    async def call(requests: Any, context: Any) -> AsyncIterator[Any]:
        result = "ended early"  # unless it comes to its end
        try:
            async for response in method(requests, context):
                yield response
            result = "ok"
        except LLMServeError as error:
            result = type(error).__name__
            await _abort(context, error, name)
        finally:
            call_ended(name, requests, context, result)

    return call


async def _abort(context: Any, error: LLMServeError, name: str) -> None:
    call_failed(name, context, error)
    await context.abort(code_of(error), error.message, trailing_metadata(error))


def traceparent_of(metadata: Iterable[tuple[str, Any]] | None) -> str:
    """Returns the traceparent in a call's invocation metadata; empty when it has none."""
    return next((str(value) for key, value in metadata or () if key == TRACEPARENT), "")
