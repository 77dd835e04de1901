"""How long a call to Redis takes at most."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

import pytest

from llmserve.core.errors import StateUnavailable
from llmserve.rpc.redis_client import RedisAccess, RedisClient

CALL_SECONDS, LATE_SECONDS = 0.4, 0.3


@pytest.fixture
async def late_port() -> AsyncIterator[int]:
    """Port of a server whose answers all come late, though each of them in time."""

    ended: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(end := asyncio.Event())
        answer = b"%1\r\n+proto\r\n:3\r\n"  # to HELLO, which signs in
        with suppress(OSError):  # the client does not wait
            while asked := await reader.read(4096):
                await asyncio.sleep(LATE_SECONDS)
                writer.write(answer * asked.count(b"*"))
                await writer.drain()
                answer = b"+OK\r\n"
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        end.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    async with asyncio.timeout(5):
        for one in ended:
            await one.wait()


async def test_the_deadline_is_that_of_the_whole_call(late_port: int) -> None:
    """Connecting, signing in, choosing the database and asking are a call, whatever each of them takes."""
    access = RedisAccess(f"redis://127.0.0.1:{late_port}/3", CALL_SECONDS, "password")
    async with aclosing(RedisClient(access)) as client:
        started = time.monotonic()
        with pytest.raises(StateUnavailable, match=r"Redis at 127\.0\.0\.1"):
            await client.run("return 1", [])
        assert time.monotonic() - started < CALL_SECONDS + LATE_SECONDS
