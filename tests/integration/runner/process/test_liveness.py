"""A process is asked at an address that only it answers."""

import asyncio

from llmserve.config.plan import ProcessSpec
from llmserve.config.plan_types import ProcessRole
from llmserve.runner.process.liveness import questions


async def test_an_apiserver_that_shares_its_port_is_asked_at_its_own() -> None:
    """The shared port is answered by any of them: a hanging one would seem to be alive."""
    asked: list[str] = []

    async def answer(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(f"{name} {(await reader.readline()).decode().split()[1]}")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    shared = await asyncio.start_server(lambda r, w: answer("shared", r, w), "127.0.0.1", 0)
    own = await asyncio.start_server(lambda r, w: answer("own", r, w), "127.0.0.1", 0)
    async with shared, own:
        addresses = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in (shared, own)]
        spec = ProcessSpec(
            ProcessRole.APISERVER, "apiserver-1", "llmserve.apiserver", http=addresses[0], direct=addresses[1]
        )
        async with questions(spec) as ask:
            assert ask is not None
            await ask()
    assert asked == ["own /live"]
