"""The KV manager as a role: its service, its state and its metrics."""

import asyncio
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from llmserve.core.clock import SystemClock
from llmserve.kvstore.directory.directory import Holder, KvTier
from llmserve.kvstore.directory.manager import KVManager
from llmserve.kvstore.directory.tier_feed import TierFeed
from llmserve.kvstore.dram.serving import PoolServer
from llmserve.kvstore.service import KVManagerService
from llmserve.kvstore.store.admin import AnyTier
from llmserve.kvstore.store.build import BuiltStore
from llmserve.kvstore.store.store import LEASE_SECONDS
from llmserve.kvstore.store_admin_calls import StoreAdminCalls
from llmserve.kvstore.store_calls import StoreCalls
from llmserve.metrics.kvmanager import KVManagerMetrics
from llmserve.metrics.registry import metrics_beside
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2_grpc
from llmserve.rpc.role import reached_at
from llmserve.rpc.server import RpcServer

_TICK_SECONDS = 1.0
_STOP_GRACE_SECONDS = 1.0  # for calls in progress; report streams end at once


class KVManagerRole:
    """Life: start (once) -> wait -> aclose (idempotent). metrics_port 0: no metrics endpoint.
    Made inside a running loop."""

    def __init__(
        self,
        *,
        listen: str,
        name: str = "kvmanager-0",
        metrics_port: int = 0,
        store: BuiltStore | None = None,
        engine_order: Sequence[str] = (),
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        """store: closed with the role. engine_order: transports for workers elsewhere, the best first."""
        registry, manager = CollectorRegistry(), KVManager(SystemClock())
        self._store = store
        self._pool = (
            PoolServer(store.arena.regions, engine_order, reached_at(listen), credentials) if store else None
        )
        self._manager, self._feeds = manager, _feeds(name, store, manager)
        self._calls = StoreCalls(store, LEASE_SECONDS, self._pool)
        admin = StoreAdminCalls(store, SystemClock())
        metrics = KVManagerMetrics(registry, admin.stats)
        _watch(metrics, manager)
        credentials.show_expiry(registry)
        if store:
            dram = store.store.dram
            metrics.prefetched_blocks_total.watch(lambda: self._calls.prefetched_blocks)
            metrics.store_leases.set_function(lambda: dram.open_leases)
            metrics.store_reserved_blocks.set_function(lambda: dram.reserved_blocks)
        self._service = KVManagerService(manager, self._calls, admin)
        self._server = RpcServer(listen, credentials)
        self._server.add(
            kvmanager_pb2_grpc.add_KVManagerServicer_to_server, self._service, "llmserve.v1.KVManager"
        )
        self._metrics = metrics_beside(listen, metrics_port, registry, self._server.is_serving)
        self.port = 0  # of the service, from start on

    async def start(self) -> None:
        """Errors: StartFailed."""
        if self._store:
            await self._store.store.open()
        self.port = await self._server.start()
        if self._metrics:
            await self._metrics.start()

    async def wait(self) -> None:
        """Runs until cancelled, and ends what is overdue meanwhile."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._calls.tick()
            self._manager.settle()

    async def aclose(self) -> None:
        self._service.close()
        await self._server.aclose(_STOP_GRACE_SECONDS)
        for feed in self._feeds:
            feed.close()
        await self._calls.aclose()
        if self._pool:
            await asyncio.to_thread(self._pool.close)
        if self._store:
            await self._store.aclose()
        if self._metrics:
            await self._metrics.aclose()


def _feeds(name: str, built: BuiltStore | None, manager: KVManager) -> list[TierFeed]:
    """From each tier of the store into the directory."""
    tiers: list[tuple[AnyTier, KvTier]] = [(built.store.dram, KvTier.DRAM)] if built else []
    tiers += [(tier, KvTier(tier.kind)) for tier in built.store.lower] if built else []
    feeds = []
    for tier, kind in tiers:
        feeds.append(TierFeed(Holder(f"{name}/{tier.name}", kind), manager.report_tier))
        tier.held_changed = feeds[-1].changed
    return feeds


def _watch(metrics: KVManagerMetrics, manager: KVManager) -> None:
    """Lets each scrape read the state itself: nothing has to be kept in step."""
    metrics.directory_blocks.set_function(lambda: manager.directory_blocks)
    metrics.open_leases.set_function(lambda: manager.open_leases)
    metrics.leased_blocks.set_function(lambda: manager.leased_blocks)
    metrics.orphan_blocks.set_function(lambda: manager.orphan_blocks)
    metrics.watchers.set_function(lambda: manager.watchers)
    metrics.workers.set_function(lambda: manager.connected_workers)
    totals = manager.totals
    metrics.reports_total.watch(lambda: totals.reports)
    metrics.resyncs_total.watch(lambda: totals.resyncs)
    metrics.leases_ended_total.watch(lambda: totals.released, "released")
    metrics.leases_ended_total.watch(lambda: totals.expired, "expired")
    metrics.leases_ended_total.watch(lambda: totals.written_off, "written_off")
