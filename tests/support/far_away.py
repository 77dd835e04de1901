"""A server on loopback, as it is over a long way or on a busy machine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def far_away(address: str, seconds: float) -> AsyncIterator[str]:
    """Yields an address from which all that is sent to a server takes so long, and what it answers, too."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await asyncio.sleep(seconds)
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection(*address.rsplit(":", 1))
        await asyncio.gather(copy(reader, inner[1]), copy(inner[0], writer))

    serving: list[asyncio.Task[None]] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.create_task(serve(reader, writer)))

    front = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with front:
        yield f"127.0.0.1:{front.sockets[0].getsockname()[1]}"
        await asyncio.gather(*serving)  # both ends have closed them
