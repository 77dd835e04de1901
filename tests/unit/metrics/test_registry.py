import asyncio
import contextlib
import socket

import pytest
from prometheus_client import CollectorRegistry, Counter

from llmserve.core.errors import StartFailed
from llmserve.metrics.kvmanager import KVManagerMetrics
from llmserve.metrics.registry import MetricsServer, WatchedCounter, metrics_beside, serve_metrics
from llmserve.metrics.router import RouterMetrics


async def _ask(port: int, request: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer.decode()


async def test_serves_what_is_registered_and_closes() -> None:
    registry = CollectorRegistry()
    Counter("things_total", "Things", registry=registry).inc(3)
    server = await serve_metrics(registry, "127.0.0.1", 0)
    answer = await _ask(server.port, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert "things_total 3.0" in answer
    openmetrics = "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n"
    assert "# EOF" in await _ask(server.port, openmetrics)
    port = server.port
    await server.aclose()
    await server.aclose()
    with pytest.raises(OSError, match=r"[Cc]onnect"):
        await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize("request_line", ["GET / HTTP/1.1", "POST /metrics HTTP/1.1", "nonsense"])
async def test_anything_else_is_not_found(request_line: str) -> None:
    server = await serve_metrics(CollectorRegistry(), "127.0.0.1", 0)
    assert "404 Not Found" in await _ask(server.port, f"{request_line}\r\n\r\n")
    await server.aclose()


async def test_probes_may_ask_for_health_where_somebody_knows_it() -> None:
    healthy = [False]
    server = await serve_metrics(CollectorRegistry(), "127.0.0.1", 0, lambda: healthy[-1])
    probe = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    assert (await _ask(server.port, probe)).startswith("HTTP/1.1 503 ")
    healthy.append(True)
    assert (await _ask(server.port, probe)).startswith("HTTP/1.1 200 ")
    await server.aclose()
    other = await serve_metrics(CollectorRegistry(), "127.0.0.1", 0)
    assert (await _ask(other.port, probe)).startswith("HTTP/1.1 404 ")
    await other.aclose()


async def test_closes_under_a_silent_client() -> None:
    server = await serve_metrics(CollectorRegistry(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /met")
    await writer.drain()
    await asyncio.wait_for(server.aclose(), 30)
    with contextlib.suppress(ConnectionResetError):  # what it had sent was not read
        assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()


async def test_metrics_stand_beside_a_service_at_an_ipv6_address() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
        port = probe.getsockname()[1]
    server = metrics_beside("[::1]:7100", port, CollectorRegistry(), lambda: True)
    assert server is not None
    await server.start()
    _, writer = await asyncio.open_connection("::1", port)
    writer.close()
    await server.aclose()


async def test_a_taken_port_is_a_failed_start() -> None:
    server = await serve_metrics(CollectorRegistry(), "127.0.0.1", 0)
    other = MetricsServer(CollectorRegistry(), "127.0.0.1", server.port)
    with pytest.raises(StartFailed, match=str(server.port)):
        await other.start()
    await other.aclose()
    await server.aclose()


def test_a_watched_counter_reads_its_total_when_asked() -> None:
    registry = CollectorRegistry()
    total = {"a": 1}
    WatchedCounter("seen_total", "Seen", ("kind",), registry=registry).watch(lambda: total["a"], "a")
    assert registry.get_sample_value("seen_total", {"kind": "a"}) == 1
    total["a"] = 5
    assert registry.get_sample_value("seen_total", {"kind": "a"}) == 5


@pytest.mark.parametrize("metrics", [RouterMetrics, KVManagerMetrics])
def test_every_metric_has_a_help_text_and_a_registry_of_its_own(metrics: type) -> None:
    for _ in range(2):  # a second registry does not clash with the first
        registry = CollectorRegistry()
        metrics(registry)
        assert all(family.documentation for family in registry.collect())


def test_a_watched_counter_may_have_rows_that_come_and_go() -> None:
    registry = CollectorRegistry()
    rows = {("w",): 2.0}
    WatchedCounter("losses_total", "Losses", ("worker",), registry=registry).watch_rows(rows.items)
    assert registry.get_sample_value("losses_total", {"worker": "w"}) == 2
    rows.clear()
    assert registry.get_sample_value("losses_total", {"worker": "w"}) is None
