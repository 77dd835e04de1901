"""All metrics of a local cluster on one page, which Prometheus scrapes at one known address.

The roles' own pages are on loopback, on ports that change from run to run. A scrape asks them all at once;
their samples get the labels `cluster`, `component` (the role) and `process` (such as decode-0).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from prometheus_client import CollectorRegistry, generate_latest

from llmserve.config.plan import ProcessSpec
from llmserve.core.errors import Unavailable
from llmserve.metrics.cluster import CertificateMetrics, ClusterMetrics
from llmserve.metrics.pages import CONTENT_TYPE, Page, merged
from llmserve.metrics.registry import PageServer
from llmserve.rpc.wires.certificates import expiry_of
from llmserve.runner.board import Board, ProcessState
from llmserve.runner.process.liveness import http_get

_log = logging.getLogger(__name__)

# A process that hangs must not make the others' metrics late: Prometheus waits ten seconds by default.
_FETCH_SECONDS = 2.0
# Less than the shortest interval that scrapes have: a page seen twice looks like a rate of nothing.
_FRESH_SECONDS = 0.5
_MOST_BYTES = 16 * 2**20


class ClusterExporter:
    """Serves GET /metrics at host:port. Life: start (once; Errors: StartFailed) -> aclose (idempotent).

    The roles are asked at most twice a second, however many clients ask. A role that does not answer is
    missing on the page, and its cluster_process_up is 0.
    """

    def __init__(
        self,
        cluster: str,
        processes: Sequence[ProcessSpec],
        board: Board,
        address: tuple[str, int],
        clock: Callable[[], float] = time.monotonic,
        certificates: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """certificates: the files whose expiry is shown, by a name."""
        self._certificates = certificates
        self._cluster, self._board, self._clock = cluster, board, clock
        self._processes = [spec for spec in processes if spec.metrics_port]
        self._registry = CollectorRegistry()
        self._metrics = ClusterMetrics(self._registry)
        self._of_certificates = CollectorRegistry()
        self._expires = CertificateMetrics(self._of_certificates).expires
        self._server = PageServer(self._page, *address)
        self._asking = asyncio.Lock()
        self._made_at = float("-inf")
        self._body = b""
        for spec in self._processes:
            self._watch(spec)

    def add(self, spec: ProcessSpec) -> None:
        """One more process has a row on the board."""
        if spec.metrics_port:
            self._processes.append(spec)
            self._watch(spec)

    def remove(self, spec: ProcessSpec) -> None:
        """The process ends for good. Its restarts stay counted."""
        if spec in self._processes:
            self._processes.remove(spec)
            with suppress(KeyError):  # nobody has asked yet
                self._metrics.process_up.remove(*self._labels(spec).values())

    @property
    def port(self) -> int:
        return self._server.port

    async def start(self) -> None:
        await self._server.start()

    async def aclose(self) -> None:
        await self._server.aclose()

    async def _page(self, accept: str) -> tuple[str, bytes]:
        async with self._asking:
            if self._clock() - self._made_at >= _FRESH_SECONDS:
                self._body = await self._make()
                self._made_at = self._clock()
        return CONTENT_TYPE, self._body

    async def _make(self) -> bytes:
        pages = [page for page in await asyncio.gather(*map(self._ask, tuple(self._processes))) if page]
        pages.append(self._certificates_page())
        return merged(pages).encode() + generate_latest(self._registry)

    def _certificates_page(self) -> Page:
        """Processes have the same metric, so that both have to be merged."""
        for name, path in self._certificates.items():
            try:
                expires = expiry_of(path.read_bytes())
            except (OSError, ValueError):  # in the middle of a change, or gone: what was seen last stands
                continue
            self._expires.labels(name).set(expires)
        return Page({"cluster": self._cluster}, generate_latest(self._of_certificates).decode())

    async def _ask(self, spec: ProcessSpec) -> Page | None:
        labels = self._labels(spec)
        page = None
        row = self._board.rows.get(spec.name)
        if row is not None and row.state is ProcessState.READY:
            try:
                page = Page(labels, await fetch(spec.metrics_port))
            except (OSError, Unavailable) as error:
                _log.warning("%s: no metrics: %s", spec.name, error)
        if spec in self._processes:  # else it was removed meanwhile
            self._metrics.process_up.labels(*labels.values()).set(page is not None)
        return page

    def _watch(self, spec: ProcessSpec) -> None:
        row, labels = self._board.rows[spec.name], self._labels(spec).values()
        self._metrics.process_restarts_total.watch(lambda: row.restarts, *labels)
        self._metrics.process_hangs_total.watch(lambda: row.hangs, *labels)

    def _labels(self, spec: ProcessSpec) -> dict[str, str]:
        return {"cluster": self._cluster, "component": spec.role.value, "process": spec.name}


async def fetch(port: int) -> str:
    """Returns the metrics of a process of this machine. Errors: OSError, Unavailable."""
    try:
        async with asyncio.timeout(_FETCH_SECONDS):
            answer = await http_get(f"127.0.0.1:{port}", "/metrics", _MOST_BYTES)
    except TimeoutError as error:
        raise Unavailable(f"no answer within {_FETCH_SECONDS:g} s") from error
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0] + b" ":
        raise Unavailable(f"answered {head[:60]!r}")
    return body.decode(errors="replace")
