"""One page of all processes' metrics."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from llmserve.config.plan import ProcessRole, ProcessSpec
from llmserve.core.errors import StartFailed, Unavailable
from llmserve.metrics.registry import MetricsServer, PageServer
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.wires.authority import Authority
from llmserve.runner import exporter as exporting
from llmserve.runner.board import Board, ProcessState
from llmserve.runner.exporter import ClusterExporter, fetch


@dataclass
class Bench:
    """Two decode workers, of which each serves a gauge with its number."""

    board: Board
    exporter: ClusterExporter
    servers: list[MetricsServer]
    gauges: list[Gauge]
    now: list[float] = field(default_factory=lambda: [0.0])

    async def samples(self, name: str) -> dict[str, float]:
        """By process, a second later."""
        self.now[0] += 1.0
        return await self.samples_now(name)

    async def samples_now(self, name: str) -> dict[str, float]:
        text = await fetch(self.exporter.port)
        families = text_string_to_metric_families(text)
        found = [sample for family in families for sample in family.samples if sample.name == name]
        assert all(one.labels["cluster"] == "demo" and one.labels["component"] == "decode" for one in found)
        return {one.labels["process"]: one.value for one in found}


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    servers, gauges, specs = [], [], []
    for index in range(2):
        registry = CollectorRegistry()
        gauges.append(Gauge("number", "Its number", registry=registry))
        gauges[-1].set(index)
        servers.append(MetricsServer(registry, "127.0.0.1", 0))
        await servers[-1].start()
        specs.append(ProcessSpec(ProcessRole.DECODE, f"decode-{index}", "m", metrics_port=servers[-1].port))
    board = Board([spec.name for spec in specs], lambda: 0.0)
    for spec in specs:
        board.set(spec.name, ProcessState.READY)
    now = [0.0]
    exporter = ClusterExporter("demo", specs, board, ("127.0.0.1", 0), lambda: now[0])
    await exporter.start()
    yield Bench(board, exporter, servers, gauges, now)
    await exporter.aclose()
    for server in servers:
        await server.aclose()


async def test_all_processes_are_on_it(bench: Bench) -> None:
    assert await bench.samples("number") == {"decode-0": 0.0, "decode-1": 1.0}
    assert await bench.samples("cluster_process_up") == {"decode-0": 1.0, "decode-1": 1.0}


async def test_it_is_half_a_second_old_at_most(bench: Bench) -> None:
    await bench.samples("number")
    bench.gauges[0].set(7)
    assert (await bench.samples_now("number"))["decode-0"] == 0.0
    assert (await bench.samples("number"))["decode-0"] == 7.0


async def test_one_that_is_gone_is_missing_and_down(bench: Bench) -> None:
    await bench.servers[0].aclose()
    assert await bench.samples("number") == {"decode-1": 1.0}
    assert await bench.samples("cluster_process_up") == {"decode-0": 0.0, "decode-1": 1.0}


async def test_one_that_is_not_ready_is_not_asked(bench: Bench) -> None:
    bench.board.restarting("decode-1", "it crashed")
    assert await bench.samples("number") == {"decode-0": 0.0}
    assert await bench.samples("cluster_process_restarts_total") == {"decode-0": 0.0, "decode-1": 1.0}


async def test_a_taken_port_is_a_failed_start(bench: Bench) -> None:
    other = ClusterExporter("demo", (), bench.board, ("127.0.0.1", bench.exporter.port))
    with pytest.raises(StartFailed, match=str(bench.exporter.port)):
        await other.start()
    await other.aclose()


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000)
    await reader.read()


@pytest.mark.parametrize(
    ("answer", "seconds", "reason"),
    [(_silent, 0.1, "no answer within 0.1 s"), (_endless, 10.0, "larger than 1000 bytes")],
)
async def test_a_page_that_hangs_or_grows_is_given_up(
    answer: Answer, seconds: float, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_FETCH_SECONDS", seconds)
    monkeypatch.setattr(exporting, "_MOST_BYTES", 1000)
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await answer(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with pytest.raises(Unavailable, match=reason):
        await fetch(server.sockets[0].getsockname()[1])
    await ended.wait()
    server.close()
    await server.wait_closed()


async def test_another_answer_is_no_page() -> None:
    async def broken(accept: str) -> tuple[str, bytes]:
        raise AssertionError("never asked")

    server = PageServer(broken, "127.0.0.1", 0)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /elsewhere HTTP/1.1\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 404")
    writer.close()
    await server.aclose()


async def test_when_certificates_expire_is_on_it(tmp_path: Path) -> None:
    authority, board = Authority.make("demo", 1.0), Board([], lambda: 0.0)
    file, now = tmp_path / "worker" / "tls.crt", [0.0]
    exporter = ClusterExporter(
        "demo", (), board, ("127.0.0.1", 0), lambda: now[0], {"worker": file, "gone": tmp_path / "none"}
    )
    await exporter.start()
    shown = 'cluster_certificate_expires_timestamp_seconds{cluster="demo",certificate="worker"} '
    try:
        for days in (1.0, 2.0, None):
            now[0] += 1.0
            if days is None:
                file.write_bytes(b"half a change")
            else:
                authority.issue(tmp_path, CallerRole.WORKER, days)
            page = await fetch(exporter.port)
            (text,) = (line.removeprefix(shown) for line in page.splitlines() if line.startswith(shown))
            assert float(text) == pytest.approx(time.time() + 86400 * (days or 2.0), abs=60)
            assert 'certificate="gone"' not in page
    finally:
        await exporter.aclose()
