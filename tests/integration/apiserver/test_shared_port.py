"""Several HTTP servers at one port: who gets which connection, and what is lost with one of them."""

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.ports import free_port
from llmserve.config.plan import ProcessRole, ProcessSpec
from llmserve.runner.machine import HttpPort

_SERVER = Path(__file__).with_name("shared_port_server.py")
_CLIENTS = 64
_REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
_WAIT_SECONDS = 20.0
pytestmark = pytest.mark.timeout(60)


@dataclass
class Servers:
    port: HttpPort
    specs: list[ProcessSpec]
    processes: dict[int, "subprocess.Popen[str]"] = field(default_factory=dict)
    clients: list["Client"] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = str(self.specs[0].http).rpartition(":")
        return host, int(port)

    def begin(self, index: int) -> None:
        share = self.port.share_of(self.specs[index])
        assert share is not None
        self.processes[index] = subprocess.Popen(
            [sys.executable, str(_SERVER), str(share)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=(share.socket_fd, share.table_fd),
        )

    def until_ready(self, index: int) -> None:
        out = self.processes[index].stdout
        assert out is not None
        assert out.readline() == "ready\n"

    def end(self, index: int, number: signal.Signals) -> str:
        """What it said after it was ready."""
        process = self.processes.pop(index)
        process.send_signal(number)
        said, _ = process.communicate(timeout=10)
        return said


@asynccontextmanager
async def serving(count: int) -> AsyncIterator[Servers]:
    http = f"127.0.0.1:{free_port()}"
    specs = [
        ProcessSpec(ProcessRole.APISERVER, f"apiserver-{index}", "none", http=http, direct="127.0.0.1:0")
        for index in range(count)
    ]
    servers = Servers(HttpPort(specs), specs)
    servers.port.open()
    try:
        for index in range(count):
            servers.begin(index)
        for index in range(count):
            servers.until_ready(index)
        yield servers
    finally:
        await asyncio.gather(*(client.aclose() for client in servers.clients))
        for index in list(servers.processes):
            servers.end(index, signal.SIGKILL)
        servers.port.close()


class Client:
    """One kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.server = -1

    async def ask(self) -> int:
        """The index of the server that answered. Errors: OSError, IncompleteReadError."""
        async with asyncio.timeout(_WAIT_SECONDS):
            self._writer.write(_REQUEST)
            head = await self._reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            self.server = int(await self._reader.readexactly(1))
            return self.server

    async def aclose(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


async def connected(servers: Servers, count: int) -> list[Client]:
    opened = await asyncio.gather(*(asyncio.open_connection(*servers.address) for _ in range(count)))
    clients = [Client(*streams) for streams in opened]
    servers.clients += clients
    await asyncio.gather(*(client.ask() for client in clients))
    return clients


def shares(clients: list[Client]) -> Counter[int]:
    return Counter(client.server for client in clients)


@pytest.mark.parametrize("count", [2, 4, 8])
async def test_connections_are_shared_evenly(count: int) -> None:
    """Opened all at once, as a load generator or a gateway that was restarted does."""
    async with serving(count) as servers:
        clients = await connected(servers, _CLIENTS)
        fair = _CLIENTS / count
        got = shares(clients)
        assert len(got) == count, got
        assert all(abs(taken - fair) <= 0.2 * fair for taken in got.values()), got


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_with_one_server_only_its_own_connections_end(how: signal.Signals) -> None:
    async with serving(4) as servers:
        clients = await connected(servers, _CLIENTS)
        servers.end(1, how)
        again = [client for client in clients if client.server == 1]
        for client in clients:
            if client.server != 1:
                assert await client.ask() == client.server
        for client in again:
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await client.ask()
        returned = await connected(servers, len(again))
        assert 1 not in shares(returned)
        rest = shares([client for client in clients if client.server != 1] + returned)
        assert max(rest.values()) - min(rest.values()) <= 4, rest


async def test_no_connection_is_lost_while_one_is_killed() -> None:
    """Each client connects anew for every request; those that wait in the queue are taken by the others."""
    async with serving(4) as servers:

        async def ask_anew(times: int) -> list[int]:
            answers = []
            for _ in range(times):
                reader, writer = await asyncio.open_connection(*servers.address)
                client = Client(reader, writer)
                try:
                    answers.append(await client.ask())
                except (OSError, asyncio.IncompleteReadError):
                    answers.append(-1)
                finally:
                    await client.aclose()
            return answers

        asking = [asyncio.create_task(ask_anew(100)) for _ in range(16)]
        await asyncio.sleep(0.2)  # in the midst of it
        servers.end(2, signal.SIGKILL)
        answers = [answer for task in asking for answer in await task]
        broken = answers.count(-1)
        assert broken <= 16, "no more than the clients that it was serving at that moment"
        assert len(answers) == 1600


async def test_a_server_that_comes_back_gets_its_share_of_new_connections() -> None:
    async with serving(2) as servers:
        before = await connected(servers, 16)
        servers.end(0, signal.SIGKILL)
        kept = [client for client in before if client.server == 1]
        servers.begin(0)
        await asyncio.to_thread(servers.until_ready, 0)
        fresh = await connected(servers, len(kept))
        assert shares(fresh)[0] >= len(kept) - 1, "it has the fewest"


async def test_a_server_that_hangs_is_not_waited_for() -> None:
    async with serving(2) as servers:
        servers.processes[0].send_signal(signal.SIGSTOP)
        clients = await connected(servers, 4)
        assert shares(clients) == {1: 4}
        servers.processes[0].send_signal(signal.SIGCONT)


async def test_nobody_can_connect_before_the_first_and_after_the_end() -> None:
    async with serving(1) as servers:
        (client,) = await connected(servers, 1)
        servers.port.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*servers.address)
        assert await client.ask() == 0, "what is open goes on"
        await client.aclose()
        assert await asyncio.to_thread(servers.end, 0, signal.SIGTERM) == ""
