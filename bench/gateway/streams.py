"""What a message costs on a stream between two processes: grpc.aio, which we use, beside grpclib.

The messages are those of a step of decode for one apiserver. CPU time of both ends together, by message:
when each waits for the answer to the one before ("in turn"), and when one end sends as fast as it can
("at once"). grpclib is no requirement of ours: `pip install grpclib`, or its table is left out.
"""

import asyncio
import importlib.util
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from multiprocessing.connection import Connection
from typing import Any

import grpc
import grpc.aio

from bench.table import markdown
from llmserve.rpc.gen.llmserve.v1 import worker_pb2

_SERVICE, _METHOD = "bench.Streams", "Session"
_PATH = f"/{_SERVICE}/{_METHOD}"
_MESSAGES, _ROUNDS, _REQUESTS = 3000, 5, 8
_END = b"end"


def run() -> str:
    libraries: dict[str, _Library] = {"grpc.aio": (_serve_aio, _ask_aio)}
    if importlib.util.find_spec("grpclib"):
        libraries["grpclib"] = (_serve_grpclib, _ask_grpclib)
    costs = {
        (name, kind): [_measured(library, kind) for _ in range(_ROUNDS)]
        for name, library in libraries.items()
        for kind in ("in turn", "at once")
    }
    rows = [
        (name, kind, f"{min(found):.0f}", f"{sorted(found)[_ROUNDS // 2]:.0f}")
        for (name, kind), found in costs.items()
    ]
    return markdown(("library", "messages", "CPU us each, best", "median"), rows)


_Serve = Callable[[Connection], Coroutine[Any, Any, None]]
_Ask = Callable[[int, int], Coroutine[Any, Any, None]]
_Library = tuple[_Serve, _Ask]


def _measured(library: _Library, kind: str) -> float:
    """Microseconds of CPU of both processes for a message."""
    serve, ask = library
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_run_server, args=(serve, theirs))
    server.start()
    try:
        port = ours.recv()
        window = 1 if kind == "in turn" else _MESSAGES
        asyncio.run(ask(port, window))  # connections, first calls
        ours.send("time")
        began, server_began = time.process_time(), ours.recv()
        asyncio.run(ask(port, window))
        ours.send("time")
        spent = time.process_time() - began + ours.recv() - server_began
        return float(spent / _MESSAGES * 1e6)
    finally:
        ours.send("stop")
        server.join()


def _run_server(serve: _Serve, pipe: Connection) -> None:
    asyncio.run(serve(pipe))


async def _until_stopped(pipe: Connection) -> None:
    """Answers with this process's CPU seconds until it is to stop."""
    while await asyncio.to_thread(pipe.recv) == "time":
        pipe.send(time.process_time())


def _step() -> bytes:
    deltas = [worker_pb2.TokenDelta(request_id=f"cmpl-{n:016x}-0", token_ids=[n]) for n in range(_REQUESTS)]
    return worker_pb2.WorkerSessionResponse(deltas=deltas).SerializeToString()


_STEP = _step()


async def _requests(answered: asyncio.Semaphore) -> AsyncIterator[bytes]:
    for _ in range(_MESSAGES):
        await answered.acquire()
        yield _STEP
    yield _END


async def _serve_aio(pipe: Connection) -> None:
    async def session(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for message in requests:
            if message == _END:
                return
            yield message

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(session)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(port)
    await _until_stopped(pipe)
    await server.stop(None)


async def _ask_aio(port: int, window: int) -> None:
    answered = asyncio.Semaphore(window)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        async for _ in channel.stream_stream(_PATH, None, None)(_requests(answered)):
            answered.release()


class _Raw:
    """grpclib's codec of messages that are bytes already."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: Any) -> bytes:
        return message

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


async def _serve_grpclib(pipe: Connection) -> None:
    from grpclib.const import Cardinality, Handler
    from grpclib.server import Server

    async def session(stream: Any) -> None:
        async for message in stream:
            if message == _END:
                return
            await stream.send_message(message)

    class Service:
        def __mapping__(self) -> dict[str, Any]:
            return {_PATH: Handler(session, Cardinality.STREAM_STREAM, bytes, bytes)}

    server = Server([Service()], codec=_Raw())
    await server.start("127.0.0.1", 0)
    assert server._server is not None
    pipe.send(server._server.sockets[0].getsockname()[1])
    await _until_stopped(pipe)
    server.close()
    await server.wait_closed()


async def _ask_grpclib(port: int, window: int) -> None:
    from grpclib.client import Channel, StreamStreamMethod

    answered = asyncio.Semaphore(window)
    channel = Channel("127.0.0.1", port, codec=_Raw())
    method = StreamStreamMethod(channel, _PATH, bytes, bytes)
    async with method.open() as stream, asyncio.TaskGroup() as group:
        await stream.send_request()
        group.create_task(_send_all(stream, answered))
        async for _ in stream:
            answered.release()
    channel.close()


async def _send_all(stream: Any, answered: asyncio.Semaphore) -> None:
    async for message in _requests(answered):
        await stream.send_message(message, end=message == _END)
