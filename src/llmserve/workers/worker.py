"""One worker process as an object: what is made of what, in which order it starts and stops."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import grpc.aio
from prometheus_client import CollectorRegistry

from llmserve.core.adapters import LoraShape
from llmserve.core.addresses import host_of, join_address
from llmserve.core.clock import SystemClock
from llmserve.core.errors import EngineDead
from llmserve.core.hang import HangLimits
from llmserve.core.tasks import TaskOwner
from llmserve.engines.base import Engine, EngineInfo
from llmserve.engines.kv_transfer import release_lease
from llmserve.engines.spec import EngineSpec
from llmserve.metrics.registry import serve_metrics
from llmserve.metrics.worker import WorkerMetrics
from llmserve.rpc.adapters import encode_lora
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.codec import encode_role
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.gen.llmserve.v1 import common_pb2, worker_pb2_grpc
from llmserve.rpc.server import RpcServer
from llmserve.tracing.base import NO_TRACER, Tracer
from llmserve.workers.adapters.build import WorkerAdapters, build_adapters
from llmserve.workers.adapters.files import AdapterStore, NoAdapterStore
from llmserve.workers.adapters.orders import AdapterOrders
from llmserve.workers.leg_spans import LegSpans
from llmserve.workers.membership import Drainer, RouterMembership
from llmserve.workers.reporter import DeviceHoldings, KvReporter, follow
from llmserve.workers.service import LeaseReleaser, WorkerService
from llmserve.workers.sessions import WorkerSessions
from llmserve.workers.status import EngineHealth, WorkerStatus

_log = logging.getLogger(__name__)

SERVICE_NAME = "llmserve.v1.Worker"
_DRAIN_POLL_SECONDS = 0.05
_CLOSE_GRACE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """listen, routers, kvmanagers: host:port. metrics_port 0: none. check_model: is called in a thread when
    the engine has loaded the model, and raises StartFailed when that is not the one which the spec names.
    open_adapters: is called in a thread with what adapters the engine can run, if it can run any."""

    listen: str
    routers: tuple[str, ...] = ()
    kvmanagers: tuple[str, ...] = ()
    metrics_port: int = 0
    drain_seconds: float = 5.0
    check_model: Callable[[], None] = lambda: None
    open_adapters: Callable[[LoraShape], AdapterStore] = lambda shape: NoAdapterStore()
    credentials: Credentials = NO_CREDENTIALS


class Worker:
    """Life, as a Role: start (once) -> wait -> aclose (idempotent, also after a failed start). `address` is
    where it serves, once it has started."""

    def __init__(
        self,
        spec: EngineSpec,
        options: WorkerOptions,
        engine: Engine,
        registry: CollectorRegistry,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """tracer: closed by aclose."""
        self._tracer = tracer
        self._spec = spec
        self._options = options
        self._engine = engine
        self._registry = registry
        self._metrics = WorkerMetrics(registry)
        options.credentials.show_expiry(registry)
        self._tasks = TaskOwner(spec.worker_id)
        self._talk = TaskOwner(f"{spec.worker_id}.router")
        self._server = RpcServer(options.listen, options.credentials)
        self._open = AsyncExitStack()
        self._membership: RouterMembership | None = None
        self._service: WorkerService | None = None
        self._adapters: WorkerAdapters | None = None
        self._status: WorkerStatus | None = None
        self._drainer = Drainer(self._is_busy, self._tasks)
        self._closed = False
        self.address = ""

    async def start(self) -> None:
        """Serves. The router and the KV manager may come later. Errors: StartFailed."""
        self._open.push_async_callback(self._tracer.aclose)
        self._open.push_async_callback(self._engine.aclose)
        info = await self._engine.start()
        await asyncio.to_thread(self._options.check_model)
        self._metrics.engine.total_blocks.set(info.total_blocks)
        bounds = HangLimits(self._spec.engine.hang_seconds, self._spec.engine.longest_step_seconds)
        watch = EngineHealth(self._engine, bounds, self._on_hang)
        self._status = WorkerStatus(self._describe(info), self._engine, self._metrics, watch)
        self._adapters = await self._open_adapters(info.lora, self._status)
        self._service = WorkerService(
            self._adapters.legs,
            WorkerSessions(SystemClock()),
            self._status,
            LeaseReleaser(partial(release_lease, credentials=self._options.credentials), self._tasks),
            self._tasks,
            self._metrics,
            LegSpans(self._tracer, self._spec.role, self._spec.worker_id, self._spec.model_name),
        )
        self._server.add(worker_pb2_grpc.add_WorkerServicer_to_server, self._service, SERVICE_NAME)
        host = host_of(self._options.listen)
        self.address = self._status.info.address = join_address(host, await self._server.start())
        self._tasks.spawn("pump", self._service.pump(), fatal=True)
        self._tasks.spawn("engine-watch", watch.run(), fatal=True)
        await self._join(self._status, self._adapters.orders)
        if self._options.metrics_port:
            port, is_serving = self._options.metrics_port, self._server.is_serving
            metrics = await serve_metrics(self._registry, host, port, is_serving)
            self._open.push_async_callback(metrics.aclose)

    async def _open_adapters(self, lora: LoraShape, status: WorkerStatus) -> WorkerAdapters:
        open_store = self._options.open_adapters
        store = await asyncio.to_thread(open_store, lora) if lora.slots else NoAdapterStore()
        adapters = build_adapters(
            self._engine, lora.slots, store, self._tasks, self._metrics.adapters, status.changed
        )
        self._open.push_async_callback(adapters.files.aclose)
        self._tasks.spawn("adapters", adapters.orders.watch())
        return adapters

    async def _join(self, status: WorkerStatus, adapters: AdapterOrders) -> None:
        if self._options.routers:
            routers = {
                address: await self._channel(address, CallerRole.ROUTER) for address in self._options.routers
            }
            self._membership = RouterMembership(status, routers, self._engine, self._drainer, adapters)
            self._talk.spawn("membership", self._membership.run())
        streams = [await self._report_stream(address) for address in self._options.kvmanagers]
        self._tasks.spawn("kv-events", follow(self._engine, streams), fatal=True)
        for index, stream in enumerate(streams):
            self._tasks.spawn(f"kv-reports-{index}", stream.run())

    async def _report_stream(self, address: str) -> KvReporter:
        holdings = DeviceHoldings(self._spec.worker_id, self._spec.epoch, SystemClock())
        return KvReporter(holdings, await self._channel(address, CallerRole.KVMANAGER))

    async def _channel(self, address: str, callee: CallerRole) -> grpc.aio.Channel:
        channel = open_channel(address, self._options.credentials, callee)
        return await self._open.enter_async_context(channel)

    def _describe(self, info: EngineInfo) -> common_pb2.WorkerInfo:
        spec = self._spec
        return common_pb2.WorkerInfo(
            worker_id=spec.worker_id,
            role=encode_role(spec.role),
            epoch=spec.epoch,
            model=spec.model_name,
            kv_shape=common_pb2.KvShape(
                model_revision=spec.model_identity,
                kv_dtype=info.kv_dtype,
                layout=info.layout,
                computation=info.computation,
                block_size_tokens=info.block_size_tokens,
                tensor_parallel=spec.engine.tensor_parallel,
                pipeline_parallel=spec.engine.pipeline_parallel,
                block_bytes=info.block_bytes,
                draft_revision=spec.draft_identity,
            ),
            max_model_len_tokens=info.max_model_len_tokens,
            total_blocks=info.total_blocks,
            max_concurrency=info.max_concurrency,
            transports=info.transports,
            handover_endpoints=info.handover_endpoints,
            lora=encode_lora(info.lora),
            min_decode_slots=spec.engine.min_decode_slots,
        )

    async def _on_hang(self, error: EngineDead) -> None:
        """Ends all requests, and lets health checks fail from now on, since the end may take long."""
        assert self._service is not None, "watched from the start on"
        self._service.engine_lost(error)
        await self._server.set_serving(False)

    async def wait(self) -> None:
        """Returns when the worker was drained. Errors: EngineDead."""
        drained = asyncio.ensure_future(self._drainer.done.wait())
        try:
            await asyncio.wait((drained, self._tasks.failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            drained.cancel()
        if self._tasks.failed.done():
            raise EngineDead(f"the engine failed: {self._tasks.failed.result()}")

    async def aclose(self) -> None:
        """Stops admitting, drains, releases leases, closes the engine."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._stop_admitting()
            await self._drain()
        finally:
            await self._close()

    async def _stop_admitting(self) -> None:
        await self._talk.aclose()
        if self._service is None:
            return
        self._service.stop_admitting()
        await self._server.set_serving(False)
        if self._membership is not None:
            await self._membership.leave()

    async def _drain(self) -> None:
        """Waits for running requests, and for leased blocks to be fetched."""
        if self._service is None or self._tasks.failed.done() or self._drainer.done.is_set():
            return
        _log.info("draining: requests=%s", self._service.running_requests)
        try:
            async with asyncio.timeout(self._options.drain_seconds):
                while await self._is_busy():  # noqa: ASYNC110 - the engine's state
                    await asyncio.sleep(_DRAIN_POLL_SECONDS)
        except TimeoutError:
            _log.warning("drain ended with requests=%s", self._service.running_requests)

    async def _is_busy(self) -> bool:
        """Called between start and aclose."""
        assert self._service is not None, "not started"
        assert self._status is not None, "not started"
        return bool(self._service.running_requests or (await self._status.load()).leased_blocks)

    async def _close(self) -> None:
        try:
            if self._service is not None:
                await self._service.give_up()
            await self._server.aclose(_CLOSE_GRACE_SECONDS)
        finally:
            if self._adapters is not None:
                self._adapters.pool.close()
            await self._tasks.aclose()
            await self._open.aclose()
