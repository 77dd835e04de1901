"""The /metrics endpoint of a role.

Each role has one class of metrics (`RouterMetrics(registry)` and so on): every metric is defined
there once, with its help text, as a typed attribute. The registry is explicit, so that several
roles can live in one process (`single_process`) and tests do not share counts.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from llmserve.core.addresses import host_of, join_address
from llmserve.core.errors import StartFailed

StateT = TypeVar("StateT")
RowT = TypeVar("RowT")

HEALTH_PATH = "/healthz"
# A scraper that connects and says nothing must not hold a socket for ever.
_REQUEST_TIMEOUT_SECONDS = 5.0
# From a queue that is passed through at once to one that lasts as long as a request may.
WAIT_BUCKETS_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class WatchedCounter:
    """A counter whose totals are kept elsewhere and read when it is scraped."""

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation, self._labelnames = name, documentation, labelnames
        self._totals: dict[tuple[str, ...], Callable[[], float]] = {}
        self._rows: Callable[[], Iterable[tuple[tuple[str, ...], float]]] = tuple
        registry.register(self)

    def watch(self, total: Callable[[], float], *labels: str) -> None:
        self._totals[labels] = total

    def watch_rows(self, rows: Callable[[], Iterable[tuple[tuple[str, ...], float]]]) -> None:
        """rows: returns the present labels and totals, where these come and go."""
        self._rows = rows

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for labels, total in self._totals.items():
            family.add_metric(labels, total())
        for labels, value in self._rows():
            family.add_metric(labels, value)
        yield family


@dataclass(frozen=True, slots=True)
class StateFamily(Generic[StateT]):
    """A metric that is read from a state: a counter if its name ends with `_total`, else a gauge.
    samples: the labels' values and the value of each series."""

    name: str
    documentation: str
    labels: tuple[str, ...]
    samples: Callable[[StateT], Iterable[tuple[Sequence[str], float]]]

    def read(self, state: StateT) -> Metric:
        kind = CounterMetricFamily if self.name.endswith("_total") else GaugeMetricFamily
        family = kind(self.name, self.documentation, labels=self.labels)
        for labels, value in self.samples(state):
            family.add_metric(labels, value)
        return family


@dataclass(frozen=True, slots=True)
class StateRows(Generic[StateT, RowT]):
    """The parts of a state that have series of their own, such as its tenants. key: values of the labels."""

    labels: tuple[str, ...]
    rows: Callable[[StateT], Iterable[RowT]]
    key: Callable[[RowT], Sequence[str]]

    def family(self, name: str, documentation: str, value: Callable[[RowT], float]) -> StateFamily[StateT]:
        """A metric with one series for each row."""
        return StateFamily(
            name,
            documentation,
            self.labels,
            lambda state: ((self.key(row), value(row)) for row in self.rows(state)),
        )


class StateCollector(Collector, Generic[StateT]):
    """Metrics whose values are kept elsewhere: the state is asked for at each scrape."""

    def __init__(self, families: Sequence[StateFamily[StateT]], state: Callable[[], StateT]) -> None:
        self._families, self._state = families, state

    def watch(self, state: Callable[[], StateT]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        for family in self._families:
            yield family.read(state)


MakePage = Callable[[str], Awaitable[tuple[str, bytes]]]
"""Content type and body, for the Accept header of who asks."""


class PageServer:
    """Serves GET /metrics on the process's own loop, and for probes that cannot ask gRPC whether it is
    healthy. There is no thread, and nothing wakes while nobody asks.

    Life: start (once) -> aclose (idempotent, also after a failed start).
    """

    def __init__(
        self, make_page: MakePage, host: str, port: int, is_healthy: Callable[[], bool] | None = None
    ) -> None:
        """is_healthy: None: nobody may ask for health."""
        self._make_page, self._host, self._port = make_page, host, port
        self._is_healthy = is_healthy
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        """The bound port (useful when port 0 was asked for); 0 before start."""
        return self._server.sockets[0].getsockname()[1] if self._server and self._server.sockets else 0

    async def start(self) -> None:
        """Errors: StartFailed when the address is taken."""
        try:
            self._server = await asyncio.start_server(self._answer, self._host, self._port)
        except OSError as error:
            address = join_address(self._host, self._port)
            raise StartFailed(f"cannot serve metrics on {address}: {error}") from error

    async def aclose(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for writer in list(self._open):
            writer.close()
        await server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with contextlib.suppress(
                OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
            ):
                async with asyncio.timeout(_REQUEST_TIMEOUT_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await self._response(head.decode("latin-1")))
                    await writer.drain()
        finally:
            self._open.discard(writer)
            writer.close()

    async def _response(self, head: str) -> bytes:
        request_line, *header_lines = head.split("\r\n")
        path = request_line.split(" ")[1].partition("?")[0] if request_line.startswith("GET ") else ""
        if path == HEALTH_PATH and self._is_healthy is not None:
            return _health(self._is_healthy())
        if path != "/metrics":
            return _http("404 Not Found", "text/plain", b"only GET /metrics\n")
        accept = next((h.partition(":")[2] for h in header_lines if h.lower().startswith("accept:")), "")
        return _http("200 OK", *await self._make_page(accept))


class MetricsServer(PageServer):
    """Serves the page of a registry."""

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        is_healthy: Callable[[], bool] | None = None,
    ) -> None:
        async def page(accept: str) -> tuple[str, bytes]:
            encode, content_type = choose_encoder(accept)
            return content_type, encode(registry)

        super().__init__(page, host, port, is_healthy)


def metrics_beside(
    listen: str, port: int, registry: CollectorRegistry, is_healthy: Callable[[], bool]
) -> MetricsServer | None:
    """Returns the endpoint of a process, on the host where its service listens. port 0: it has none."""
    return MetricsServer(registry, host_of(listen), port, is_healthy) if port else None


def _health(healthy: bool) -> bytes:
    status, body = ("200 OK", b"ok\n") if healthy else ("503 Service Unavailable", b"not serving\n")
    return _http(status, "text/plain", body)


def _http(status: str, content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


async def serve_metrics(
    registry: CollectorRegistry, host: str, port: int, is_healthy: Callable[[], bool] | None = None
) -> MetricsServer:
    """Starts the endpoint; the caller closes it. Errors: StartFailed."""
    server = MetricsServer(registry, host, port, is_healthy)
    await server.start()
    return server
