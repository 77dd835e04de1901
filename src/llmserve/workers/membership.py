"""The worker as a member of the router's cluster: register, heartbeats, drain, deregister."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import grpc
import grpc.aio

from llmserve.core.adapters import AdapterReport, AdapterReports
from llmserve.core.errors import LLMServeError, NotFound
from llmserve.core.ids import WorkerId
from llmserve.core.request import KvPeer
from llmserve.core.tasks import TaskOwner
from llmserve.engines.base import Engine
from llmserve.rpc.adapters import decode_orders, encode_reports
from llmserve.rpc.codec import encode_load
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.leader import RouterSelector
from llmserve.rpc.role import set_log_level
from llmserve.rpc.status import from_grpc
from llmserve.workers.adapters.orders import AdapterOrders
from llmserve.workers.status import WorkerStatus

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
# What was placed here just before the order is still on its way.
_QUIET_SECONDS = 0.5

_CALL_SECONDS = 2.0
_CALL_SECONDS_OF_SEVERAL = 1.0  # one that hangs may not lead any more


class Drainer:
    """A worker that is to leave on an operator's order ends what runs, then stops.

    is_busy: something runs here, or waits to be fetched. `done`: nothing does any more, or the time is
    over; the worker is to stop."""

    def __init__(self, is_busy: Callable[[], Awaitable[bool]], tasks: TaskOwner) -> None:
        self._is_busy = is_busy
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None
        self.done = asyncio.Event()

    @property
    def draining(self) -> bool:
        return self._task is not None

    def order(self, drain: bool, timeout_seconds: float) -> None:
        """Idempotent: a second order to drain does not begin anew. One to stay comes too late once it is
        `done`."""
        if drain and self._task is None:
            _log.info("draining, for at most %g s", timeout_seconds)
            self._task = self._tasks.spawn("drain", self._drain(timeout_seconds))
        elif not drain and self._task is not None and not self.done.is_set():
            _log.info("no longer draining")
            self._task.cancel()
            self._task = None

    async def _drain(self, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._until_quiet()
        except TimeoutError:
            _log.warning("drained for %g s: what still runs goes on elsewhere", timeout_seconds)
        self.done.set()

    async def _until_quiet(self) -> None:
        quiet_since = asyncio.get_running_loop().time()
        while (now := asyncio.get_running_loop().time()) - quiet_since < _QUIET_SECONDS:
            if await self._is_busy():
                quiet_since = now
            await asyncio.sleep(_POLL_SECONDS)


class RouterMembership:
    """`run` is one task of the worker. `leave` deregisters, after that task was cancelled."""

    def __init__(
        self,
        status: WorkerStatus,
        routers: Mapping[str, grpc.aio.Channel],
        engine: Engine,
        drainer: Drainer,
        adapters: AdapterOrders,
    ) -> None:
        """routers: an open channel to each, by its address. One of them leads."""
        self._status = status
        self._drainer = drainer
        self._engine = engine
        self._adapters = adapters
        self._members_version = self._adapters_version = 0
        self._reported: Mapping[int, AdapterReport] | None = None  # as the router knows them; None: perhaps
        self._routers = RouterSelector(tuple(routers))
        self._stubs = {
            address: router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]  # generated
            for address, channel in routers.items()
        }
        self._call_seconds = _CALL_SECONDS_OF_SEVERAL if self._routers.has_others else _CALL_SECONDS
        self._away = False
        self.registered = asyncio.Event()

    @property
    def _stub(self) -> router_pb2_grpc.RouterStub:
        return self._stubs[self._routers.address]

    async def run(self) -> None:
        """Runs for ever. Routers may come and go, and another may lead."""
        while True:
            try:
                await self._stay()
            except NotFound:
                _log.info("the router does not know this worker: registering again")
                self.registered.clear()
                continue
            except Exception as error:  # one that nobody foresaw must not end the heartbeats
                self._lost(error)
            await self._routers.failed()

    def _lost(self, error: Exception) -> None:
        """With several routers, the worker registers with the next one. The loss is logged once."""
        if self._routers.has_others:
            self.registered.clear()
        if not self._away:
            trace = None if isinstance(error, LLMServeError) else error
            _log.warning("no contact with the router, trying again: %s", error, exc_info=trace)
        self._away = True

    async def _stay(self) -> None:
        """Registers if it has not, then heartbeats until a call fails. Errors: LLMServeError."""
        if not self.registered.is_set():
            self._interval = await self._register()
        while True:
            await self._heartbeat()
            self._reached()
            await self._status.wait_for_change(self._interval)

    async def _register(self) -> float:
        info = self._status.info
        request = router_pb2.RegisterRequest(worker=info)
        try:
            answer = await self._stub.Register(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error) from error
        _log.info("registered: worker=%s epoch=%s", info.worker_id, info.epoch)
        self.registered.set()
        self._reached()
        self._members_version = self._adapters_version = 0
        self._reported = None
        return float(answer.heartbeat_seconds)

    def _reached(self) -> None:
        self._away = False
        self._routers.succeeded()

    async def _heartbeat(self) -> None:
        info = self._status.info
        load = encode_load(await self._status.load())
        reports = {report.number: report for report in self._adapters.reports()}
        changes = AdapterReports.since(self._reported, reports)
        self._reported = None  # until the router has answered
        request = router_pb2.HeartbeatRequest(
            worker_id=info.worker_id,
            epoch=info.epoch,
            load=load,
            members_version=self._members_version,
            draining=self._drainer.draining,
            adapters_version=self._adapters_version,
            adapters=None if changes is None else encode_reports(changes),
        )
        try:
            answer = await self._stub.Heartbeat(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error) from error
        self._reported = reports
        self._interval = answer.heartbeat_seconds or self._interval
        if answer.log_level:
            set_log_level(answer.log_level)
        if answer.members_version != self._members_version:
            await self._engine.set_peers([_peer(message) for message in answer.kv_peers])
            self._members_version = answer.members_version
        if answer.adapters_version != self._adapters_version:
            self._adapters.carry_out(decode_orders(answer.adapters))
            self._adapters_version = answer.adapters_version
        if answer.HasField("drain"):
            self._drainer.order(answer.drain.drain, answer.drain.timeout_seconds)

    async def leave(self) -> None:
        """Deregisters. A failure is only logged, since the router would notice anyhow."""
        if not self.registered.is_set():
            return
        self.registered.clear()
        info = self._status.info
        request = router_pb2.DeregisterRequest(worker_id=info.worker_id, epoch=info.epoch)
        try:
            await self._stub.Deregister(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError as error:
            _log.warning("deregistering failed: %s", from_grpc(error).message)


def _peer(message: router_pb2.KvPeer) -> KvPeer:
    return KvPeer(WorkerId(message.worker_id), message.epoch, tuple(message.endpoints))
