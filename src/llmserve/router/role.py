"""The router as a role: its service, its state and its metrics."""

import random
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from llmserve.config.schema import Manifest
from llmserve.core.clock import SystemClock
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.registry import MetricsServer
from llmserve.metrics.router import RouterMetrics
from llmserve.router.kv_watch import KvWatch
from llmserve.router.prefix_index import PrefixIndex
from llmserve.router.recorder import Recorder
from llmserve.router.service import RouterService
from llmserve.router.settings import RouterSettings, build_controller
from llmserve.rpc.gen.llmserve.v1 import router_pb2_grpc
from llmserve.rpc.server import RpcServer

_STOP_GRACE_SECONDS = 1.0


class RouterRole:
    """Life: start (once) -> wait -> aclose (idempotent). metrics_port 0: no metrics endpoint.
    manifest: what the settings are from; without it they are not reloaded. Made inside a running loop."""

    def __init__(
        self,
        settings: RouterSettings,
        *,
        listen: str,
        kvmanagers: Sequence[str] = (),
        metrics_port: int = 0,
        manifest: Manifest | None = None,
    ) -> None:
        """kvmanagers: addresses; none: nothing is known of what is cached where."""
        clock, registry = SystemClock(), CollectorRegistry()
        index = PrefixIndex()
        self._kv_watch = KvWatch(kvmanagers, index)
        self._controller = build_controller(settings, clock, random.Random(), index)
        recorder = Recorder(RouterMetrics(registry), self._controller, len(kvmanagers))
        self._service = RouterService(self._controller, settings, clock, recorder, self._kv_watch, manifest)
        self._server = RpcServer(listen)
        self._server.add(router_pb2_grpc.add_RouterServicer_to_server, self._service, "llmserve.v1.Router")
        host = listen.rpartition(":")[0]
        self._metrics = MetricsServer(registry, host, metrics_port) if metrics_port else None
        self._owner = TaskOwner("router")
        self.port = 0  # of the service, from start on

    async def start(self) -> None:
        """Errors: StartFailed."""
        self._owner.spawn("state", self._service.run(), fatal=True)
        self._owner.spawn("kv-watch", self._kv_watch.wait(), fatal=True)
        await self._kv_watch.start()
        self.port = await self._server.start()
        if self._metrics:
            await self._metrics.start()

    async def wait(self) -> None:
        raise await self._owner.failed

    async def aclose(self) -> None:
        await self._service.aclose()
        await self._server.aclose(_STOP_GRACE_SECONDS)
        await self._kv_watch.aclose()
        if self._metrics:
            await self._metrics.aclose()
        await self._owner.aclose()

    def check_integrity(self) -> None:
        """Raises AssertionError when the state contradicts itself."""
        self._controller.check_integrity()
