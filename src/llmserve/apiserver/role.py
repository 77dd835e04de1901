"""The apiserver as a role of a process: the apiserver itself, and its metrics on a port of their own."""

import logging

from prometheus_client import CollectorRegistry

from llmserve.apiserver.apiserver import Apiserver
from llmserve.apiserver.grammars.server import ServerProcess
from llmserve.apiserver.http.errors import is_expected
from llmserve.apiserver.options import ApiserverOptions
from llmserve.config.schema import Manifest
from llmserve.core.logs import KnownFailures
from llmserve.metrics.registry import MetricsServer

_LOOPBACK = "127.0.0.1"


class ApiserverRole:
    """Life: start (once) -> wait -> aclose (idempotent). metrics_port 0: /metrics on the HTTP port only.
    forked: what compiles grammars; None: it is started when it is needed. Made inside a running loop."""

    def __init__(
        self,
        options: ApiserverOptions,
        manifest: Manifest,
        registry: CollectorRegistry,
        *,
        metrics_port: int = 0,
        forked: ServerProcess | None = None,
    ) -> None:
        self._apiserver = Apiserver(options, manifest, registry, forked)
        self._metrics = MetricsServer(registry, _LOOPBACK, metrics_port) if metrics_port else None

    async def start(self) -> None:
        """Errors: StartFailed."""
        await self._apiserver.start()
        _quieten_vllm()  # it sets its logging up again on the way
        if self._metrics:
            await self._metrics.start()

    async def wait(self) -> None:
        await self._apiserver.wait()

    async def aclose(self) -> None:
        await self._apiserver.aclose()
        if self._metrics:
            await self._metrics.aclose()


def _quieten_vllm() -> None:
    """vLLM logs a traceback of whatever ends a stream, through a handler of its own or (JSON) that of all."""
    known = KnownFailures("vllm", is_expected)
    for handler in (*logging.getLogger("vllm").handlers, *logging.getLogger().handlers):
        handler.addFilter(known)
