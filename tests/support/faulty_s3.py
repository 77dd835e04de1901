"""A proxy before an S3 server that does what servers, networks and limits do to requests."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto

import pytest

from tests.support.seaweed import Seaweed

_NEVER = 1 << 30


class Kind(Enum):
    STATUS = auto()  # answers with `status` and an S3 error code
    STALL = auto()  # takes the request and says nothing
    CUT = auto()  # the connection breaks in the middle of the answer's body
    DROP = auto()  # the connection breaks before any answer
    LOSE = auto()  # the server does it, but its answer is lost
    FLIP = auto()  # a bit of the answer's body changes on the way


@dataclass(slots=True)
class Fault:
    """Of the next `times` requests whose first line begins with `method`."""

    kind: Kind
    method: str = ""
    times: int = _NEVER
    status: int = 503
    code: str = "SlowDown"


class FaultyS3:
    """fault: None, all goes well. requests: first lines of what came."""

    def __init__(self, server_port: int) -> None:
        self.endpoint = ""
        self.fault: Fault | None = None
        self.requests: list[str] = []
        self.most_at_once = 0
        self._at_once = 0
        self._server_port = server_port
        self._connections: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def hang_up(self) -> None:
        """After the listener is closed. Those that were just accepted get their turn to be closed, too."""
        await asyncio.sleep(0.01)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")  # one request a connection
                await self._count(head, await reader.readexactly(_length(head)), writer)
        finally:
            writer.close()

    async def _count(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await self._answer(head, body, writer)
        finally:
            self._at_once -= 1

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        self.requests.append(head.partition(b"\r\n")[0].decode())
        fault = self._next(self.requests[-1])
        if fault is None:
            writer.write(await self._forward(head, body))
        elif fault.kind is Kind.STATUS:
            writer.write(_error(fault))
        elif fault.kind is Kind.STALL:
            await asyncio.Event().wait()
        elif fault.kind is Kind.DROP:
            writer.transport.abort()
        else:
            _spoil(fault.kind, await self._forward(head, body), writer)
        await writer.drain()

    def _next(self, line: str) -> Fault | None:
        fault = self.fault
        if fault is None or not line.startswith(fault.method) or not fault.times:
            return None
        fault.times -= 1
        return fault

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        try:
            writer.write(head[:-2] + b"Connection: close\r\n\r\n" + body)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()


def _spoil(kind: Kind, answer: bytes, writer: asyncio.StreamWriter) -> None:
    if kind is Kind.LOSE:
        writer.transport.abort()
    elif kind is Kind.CUT:
        writer.write(answer[: -1 - len(answer) // 3])
    else:
        writer.write(answer[:-1] + bytes([answer[-1] ^ 1]))


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _error(fault: Fault) -> bytes:
    body = f"<Error><Code>{fault.code}</Code><Message>told to</Message></Error>".encode()
    head = f"HTTP/1.1 {fault.status} Told\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


async def _serve(proxy: FaultyS3, ready: Callable[[asyncio.AbstractEventLoop], None]) -> None:
    """Until it is cancelled."""
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    ready(asyncio.get_running_loop())
    try:
        await asyncio.Event().wait()
    finally:
        server.close()
        await proxy.hang_up()


@contextmanager
def faulty_s3(server_port: int) -> Iterator[FaultyS3]:
    """On a thread of its own, so that tests without a loop can have it, and none is held up by it."""
    proxy, up = FaultyS3(server_port), threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None] | None]] = []

    def ready(loop: asyncio.AbstractEventLoop) -> None:
        running.append((loop, asyncio.current_task(loop)))
        up.set()

    def run() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(_serve(proxy, ready))

    thread = threading.Thread(target=run, name="faulty-s3")
    thread.start()
    assert up.wait(10), "the proxy did not start"
    ((loop, task),) = running
    assert task is not None
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


@pytest.fixture
def s3_proxy(s3_server: Seaweed) -> Iterator[FaultyS3]:
    with faulty_s3(s3_server.port) as proxy:
        yield proxy
