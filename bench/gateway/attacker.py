"""Holds connections to an apiserver, in a process of its own.

`python -m bench.gateway.attacker URL CONNECTIONS` prints a line when all are open, and at the end of its
input the counts of a Siege.

It comes from 127.0.0.2, since each address may have so many connections. A third of them has asked for
nothing, a third is in the middle of its headers, a third in the middle of a body; each of these sends a byte
now and then. A connection that is closed is opened again.
"""

import asyncio
import itertools
import json
import resource
import sys
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

_ADDRESS = "127.0.0.2"
_BYTE_SECONDS, _AGAIN_SECONDS = 2.0, 1.0
_RECEIVED_BYTES = 2048
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: cluster\r\nContent-Type: application/json\r\n"
_BEGINNINGS = (b"", _HEAD + b"X-Slow: ", _HEAD + b"Content-Length: 100000\r\n\r\n{")


@dataclass(slots=True)
class Siege:
    """held: connections that are open now. refused: how many ended with an answer of 429. closed: how many
    ended otherwise."""

    held: int = 0
    refused: int = 0
    closed: int = 0


class _Attacker:
    def __init__(self, url: str) -> None:
        host, _, port = urlsplit(url).netloc.rpartition(":")
        self._where = host, int(port)
        self.siege = Siege()

    async def hold(self, begin: bytes, opened: asyncio.Event) -> None:
        while True:
            await self._once(begin, opened)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _once(self, begin: bytes, opened: asyncio.Event) -> None:
        try:
            reader, writer = await asyncio.open_connection(*self._where, local_addr=(_ADDRESS, 0))
        except OSError:
            self.siege.closed += 1
            return
        finally:
            opened.set()
        self.siege.held += 1
        writer.write(begin)
        said = asyncio.create_task(reader.read(_RECEIVED_BYTES))
        try:
            while not (await asyncio.wait([said], timeout=_BYTE_SECONDS))[0]:
                writer.write(b"a" if begin else b"")
            self._count(said.result())
        except OSError:
            self._count(b"")
        finally:
            self.siege.held -= 1
            said.cancel()
            writer.close()

    def _count(self, said: bytes) -> None:
        if said.startswith(b"HTTP/1.1 429 "):
            self.siege.refused += 1
        else:
            self.siege.closed += 1


async def main(url: str, connections: int) -> None:
    attacker, opened = _Attacker(url), [asyncio.Event() for _ in range(connections)]
    tasks = [
        asyncio.create_task(attacker.hold(begin, one))
        for one, begin in zip(opened, itertools.cycle(_BEGINNINGS), strict=False)
    ]
    await asyncio.gather(*(one.wait() for one in opened))
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps(asdict(attacker.siege)), flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
