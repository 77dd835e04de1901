"""The load of `bench gateway`: chat completions in closed loops, sent and read with little work.

A client that parses what it gets costs as much as a server. This one sends bytes that were made before, looks
for the end of an answer, and checks afterwards that it is whole. Its CPU time is counted nowhere.
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

_MARK = "012345678"  # is replaced by the number of the request, as long as this
_END_OF_HEAD = b"\r\n\r\n"
_END_OF_CHUNKS = b"\r\n0\r\n\r\n"
_ANSWER_SECONDS = 300.0
_SHOWN_BYTES = 300


class Prompts:
    """Requests of one kind that differ in one number, so that no two have the same prompt."""

    def __init__(
        self, url: str, model: str, messages: list[dict[str, str]], tokens: int, stream: bool
    ) -> None:
        """messages: as `chat` makes them. tokens: of the answer."""
        fields: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": tokens}
        body = json.dumps({**fields, "temperature": 0, "ignore_eos": True, "stream": stream}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._before, _, self._after = (head.encode() + body).partition(_MARK.encode())

    def request(self, number: int) -> bytes:
        return b"%b%0*d%b" % (self._before, len(_MARK), number, self._after)


_SENTENCE = "the people who work in the city go to their house near the water and read a book about the world"
_TURN_TOKENS = 300


def chat(prompt_tokens: int, *, is_shared: bool = False) -> list[dict[str, str]]:
    """Messages of about so many tokens. They begin with the request's number; or, if `is_shared`, they are a
    conversation of many turns, which all requests have in common up to the last message."""
    if not is_shared:
        return [{"role": "user", "content": f"{_MARK} {_text(prompt_tokens - 30)}"}]
    turns = range(prompt_tokens // _TURN_TOKENS // 2 * 2)
    history = [
        {"role": "assistant" if turn % 2 else "user", "content": _text(_TURN_TOKENS - 5)} for turn in turns
    ]
    return [*history, {"role": "user", "content": f"{_MARK} what now?"}]


def _text(words: int) -> str:
    return " ".join(itertools.islice(itertools.cycle(_SENTENCE.split()), max(1, words)))


@dataclass(frozen=True, slots=True)
class Load:
    """What a turn has shown. chunks: events of all streams. failures: what was answered instead."""

    latencies: list[float]
    failures: list[str]
    seconds: float
    client_cpu_seconds: float
    chunks: int = 0

    @property
    def requests(self) -> int:
        return len(self.latencies)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def drive(url: str, prompts: Prompts, clients: int, seconds: float, numbers: Iterator[int]) -> Load:
    """As `drive_over`, over connections of its own."""
    async with connected(url, clients) as connections:
        return await drive_over(connections, prompts, seconds, numbers)


@asynccontextmanager
async def connected(url: str, clients: int) -> AsyncIterator[Sequence["_Connection"]]:
    connections = [await _connected(url) for _ in range(clients)]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


async def drive_over(
    connections: Sequence["_Connection"], prompts: Prompts, seconds: float, numbers: Iterator[int]
) -> Load:
    """A client on each connection sends its next request when it has the last answer, until the time is over
    or one has failed. Each sends one at least."""
    latencies: list[float] = []
    failures: list[str] = []
    chunks = 0
    started, cpu = time.perf_counter(), time.process_time()

    async def client(connection: _Connection) -> None:
        nonlocal chunks
        begun = started
        while begun < started + seconds and not failures:
            answer = await connection.ask(prompts.request(next(numbers)))
            ended = time.perf_counter()
            latencies.append(ended - begun)
            chunks += answer.count(b"data: {")
            if not is_whole(answer):
                failures.append(answer[:_SHOWN_BYTES].decode(errors="replace"))
            begun = ended

    await asyncio.gather(*map(client, connections))
    return Load(latencies, failures, time.perf_counter() - started, time.process_time() - cpu, chunks)


def is_whole(answer: bytes) -> bool:
    """Whether all tokens came: each request ends at its limit, and an error in a stream says no reason."""
    return answer.startswith(b"HTTP/1.1 200 ") and b'"finish_reason":"length"' in answer


async def ask(url: str, prompts: Prompts, number: int) -> dict[str, Any]:
    """The body of one answer that is not streamed. Errors: RuntimeError when it is not a whole one."""
    connection = await _connected(url)
    try:
        answer = await connection.ask(prompts.request(number))
    finally:
        connection.close()
    if not is_whole(answer):
        raise RuntimeError(f"{url} answered {answer[:_SHOWN_BYTES].decode(errors='replace')}")
    body: dict[str, Any] = json.loads(answer.partition(_END_OF_HEAD)[2])
    return body


class _Connection(asyncio.Protocol):
    """One request at a time on a connection that is kept."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self._missing: int | None = None  # bytes of the answer; unknown before its head and in chunks
        self._is_chunked = False
        self._answered: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it

    async def ask(self, request: bytes) -> bytes:
        """The whole answer; what came of it when the connection ends before."""
        assert self._transport is not None, "connected"
        self._pieces, self._missing, self._is_chunked = [], None, False
        self._answered = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            return b"the connection was closed"
        self._transport.write(request)
        return await asyncio.wait_for(self._answered, _ANSWER_SECONDS)

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        if self._missing is not None:
            self._missing -= len(data)
        elif not self._is_chunked:
            self._read_head()
        if self._missing == 0 or (self._is_chunked and self._ends_with_last_chunk()):
            self._end()

    def _read_head(self) -> None:
        answer = b"".join(self._pieces)
        head, found, body = answer.partition(_END_OF_HEAD)
        if not found:
            return
        self._pieces = [answer]
        _, named, length = head.lower().partition(b"content-length:")
        if named:
            self._missing = int(length.split(b"\r\n")[0]) - len(body)
        else:
            self._is_chunked = True

    def _ends_with_last_chunk(self) -> bool:
        """The last piece may have only a part of the end."""
        tail = self._pieces[-1]
        if len(tail) < len(_END_OF_CHUNKS):
            tail = b"".join(self._pieces[-len(_END_OF_CHUNKS) :])
        return tail.endswith(_END_OF_CHUNKS)

    def connection_lost(self, error: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(b"".join(self._pieces))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def _connected(url: str) -> _Connection:
    host, _, port = urlsplit(url).netloc.rpartition(":")
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(_Connection, host, int(port))
    return connection
