"""The router as a role: its service, its shared state, its election, and its metrics."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from llmserve.config.schema import Manifest
from llmserve.core.addresses import join_address
from llmserve.core.clock import LeaseClock, SystemClock
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.registry import metrics_beside
from llmserve.metrics.router import RouterMetrics
from llmserve.router.kv_watch import KvWatch
from llmserve.router.leader.build import build_state
from llmserve.router.leader.election import LeaderElection
from llmserve.router.leader.file_state import FileState
from llmserve.router.leader.peers import Peers
from llmserve.router.leader.state import MemoryState, SharedState
from llmserve.router.leader.term import LeaderTerm, Manifests, TermParts
from llmserve.router.prefix.index import PrefixIndex
from llmserve.router.service import RouterService
from llmserve.router.settings import RouterSettings
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.gen.llmserve.v1 import router_pb2_grpc
from llmserve.rpc.role import reached_at
from llmserve.rpc.server import RpcServer
from llmserve.tracing.base import NO_TRACER, Tracer
from llmserve.tracing.open import open_tracer

_SERVICE_NAME = "llmserve.v1.Router"
_STOP_GRACE_SECONDS = 1.0
_NAME = "router-0"


class RouterRole:
    """Life: start (once) -> wait -> aclose (idempotent), inside a running loop. It is ready when it
    answers, leader or not.

    metrics_port 0: no metrics endpoint. state: shared with the routers at `others`; None: this router is
    alone. kvmanagers: addresses; none: cached blocks are unknown. manifest: source of the settings; None:
    they are not reloaded."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        *,
        name: str = _NAME,
        listen: str,
        metrics_port: int = 0,
        others: Sequence[str] = (),
        kvmanagers: Sequence[str] = (),
        read_again: Callable[[], Manifest] | None = None,
        run_dir: str | None = None,
    ) -> "RouterRole":
        """name: name of this process. run_dir: where a router that is alone keeps what it has to know after a
        restart; None: nowhere. Errors: StartFailed."""
        settings = RouterSettings.of(manifest)
        cluster, call_seconds = manifest.metadata.name, settings.terms.call_seconds
        state = build_state(manifest.state, cluster, os.environ, call_seconds)
        if state is None and run_dir is not None:
            state = FileState(LeaseClock(), Path(run_dir))
        return cls(
            settings,
            name=name,
            listen=listen,
            metrics_port=metrics_port,
            state=state,
            others=others,
            kvmanagers=kvmanagers,
            manifest=manifest,
            read_again=read_again,
            credentials=Credentials.read(CallerRole.ROUTER, name),
        )

    def __init__(
        self,
        settings: RouterSettings,
        *,
        name: str = _NAME,
        listen: str,
        metrics_port: int = 0,
        state: SharedState | None = None,
        others: Sequence[str] = (),
        kvmanagers: Sequence[str] = (),
        manifest: Manifest | None = None,
        read_again: Callable[[], Manifest] | None = None,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        """read_again: returns the manifest as it is when a term begins. Errors: ManifestError."""
        registry = CollectorRegistry()
        self._tracer = _tracer(manifest, name, registry)
        self._alone = not settings.terms.shared
        self._state = state or MemoryState(LeaseClock())
        self._rpc_metrics = RouterMetrics(registry)
        credentials.show_expiry(registry)
        self._peers = Peers(others, settings.terms.call_seconds, credentials)
        self._owner = TaskOwner("router")
        index = PrefixIndex()
        self._kv_watch = KvWatch(kvmanagers, index, credentials)
        parts = TermParts(
            settings, SystemClock(), self._state, self._rpc_metrics, index, self._kv_watch, self._tracer
        )
        self._term = LeaderTerm(parts, self._owner, self._on_change, Manifests(manifest, read_again))
        self._election = LeaderElection(self._state, self._peers, self._term, settings.terms, LeaseClock())
        self._term.open(self._election)
        self._listen = listen
        self._server = RpcServer(listen, credentials)
        service = RouterService(self._term, self._election)
        self._server.add(router_pb2_grpc.add_RouterServicer_to_server, service, _SERVICE_NAME)
        self._metrics = metrics_beside(listen, metrics_port, registry, self._server.is_serving)
        self.port = 0  # of the service, from start on

    async def start(self) -> None:
        """Errors: StartFailed."""
        self._owner.spawn("kv-watch", self._kv_watch.wait(), fatal=True)
        await self._kv_watch.start()
        self.port = await self._server.start()
        await self._on_change(False)
        address = join_address(reached_at(self._listen), self.port)
        self._owner.spawn("leadership", self._election.run(address), fatal=True)
        if self._alone:
            await self._term.begun.wait()
        if self._metrics:
            await self._metrics.start()

    async def _on_change(self, leads: bool) -> None:
        """The process is healthy either way; only the leader serves."""
        self._rpc_metrics.leads.set(leads)
        await self._server.set_serving(leads, _SERVICE_NAME)

    async def wait(self) -> None:
        raise await self._owner.failed

    async def aclose(self) -> None:
        """Another router leads as soon as the sessions of this one are closed."""
        try:
            await self._stop()
        finally:
            await self._tracer.aclose()

    async def _stop(self) -> None:
        await self._owner.aclose()
        await self._election.resign()
        await self._server.aclose(_STOP_GRACE_SECONDS)
        await self._kv_watch.aclose()
        if self._metrics:
            await self._metrics.aclose()
        await self._peers.aclose()
        await self._state.aclose()

    def check_integrity(self) -> None:
        """Raises AssertionError when the state contradicts itself."""
        self._term.controller.check_integrity()


def _tracer(manifest: Manifest | None, name: str, registry: CollectorRegistry) -> Tracer:
    if manifest is None:
        return NO_TRACER
    settings, cluster = manifest.observability.tracing, manifest.metadata.name
    return open_tracer(settings, role="router", process=name, cluster=cluster, registry=registry)
