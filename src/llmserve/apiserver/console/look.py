"""One look at the cluster: what its router and its KV managers answer, over channels that stay open."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc.aio

from llmserve.apiserver.console.processes import ClusterFile, ProcessTable
from llmserve.core.errors import Unavailable
from llmserve.overview.kv import summed
from llmserve.overview.snapshot import HEALTHY, Answers, snapshot
from llmserve.overview.views import Snapshot
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, kvmanager_pb2_grpc, router_pb2, router_pb2_grpc
from llmserve.rpc.leader import RouterAddresses
from llmserve.rpc.status import from_grpc

_DEADLINE_SECONDS = 2.0
# Adapters change seldom, and workers tell KV managers and the router once a second how they are.
_ADAPTERS_SECONDS = 5.0
_KV_SECONDS = 1.0
_WORKER_ROLES = ("prefill", "decode", "aggregated")
_Answer = TypeVar("_Answer")


class ClusterLook:
    """cluster: its name. apiserver: the name of this one. Life: aclose (idempotent)."""

    def __init__(self, cluster: str, apiserver: str, routers: RouterAddresses, file: ClusterFile) -> None:
        self._cluster, self._apiserver, self._routers, self._file = cluster, apiserver, routers, file
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._kept: dict[str, tuple[float, Any]] = {}  # answers, and until when they count

    @property
    def processes(self) -> ProcessTable | None:
        """What the supervisor says; None where there is none."""
        return self._file.read()

    async def now(self) -> Snapshot:
        """Who does not answer is among the problems of what it returns."""
        self._kept.clear()
        return await self.again()

    async def again(self) -> Snapshot:
        """As now, for those who look all the time: what changes seldom may be some seconds old."""
        problems: list[str] = []
        address, status = await self._leader(problems)
        listed: router_pb2.ListAdaptersResponse | None = None
        if address:
            ask = self._router(address).ListAdapters
            listed = await self._ask(problems, "the router", ask, _LIST, _ADAPTERS_SECONDS)
        managers = (*status.prefix_index.followed, *status.prefix_index.away)
        kv = await asyncio.gather(*(self._kv_status(problems, one) for one in managers))
        whole = summed({name: one for name, one in zip(managers, kv, strict=True) if one is not None})
        table = self._file.read() or ProcessTable.of_workers(self._cluster, self._apiserver, status)
        adapters = tuple(listed.adapters) if listed is not None else ()
        healths = _healths(
            table, status, {address} | {one for one, answer in zip(managers, kv, strict=True) if answer}
        )
        answers = Answers(healths, status, whole, tuple(problems), address, adapters)
        return snapshot(table, answers, time.time())

    async def kv_managers(self) -> list[kvmanager_pb2_grpc.KVManagerStub]:
        """Errors: Unavailable when no router says which there are."""
        problems: list[str] = []
        _, status = await self._leader(problems)
        if problems:
            raise Unavailable(problems[0])
        return [self._manager(one) for one in (*status.prefix_index.followed, *status.prefix_index.away)]

    async def aclose(self) -> None:
        channels, self._channels = self._channels, {}
        await asyncio.gather(*(channel.close(None) for channel in channels.values()))

    # -- questions

    async def _leader(self, problems: list[str]) -> tuple[str, router_pb2.GetClusterStatusResponse]:
        """Returns the address and the answer of the router that leads; an empty one when none does."""
        errors: list[str] = []
        for address in self._routers.addresses:
            status: router_pb2.GetClusterStatusResponse | None = await self._ask(
                errors, f"the router at {address}", self._router(address).GetClusterStatus, _STATUS
            )
            if status is not None and status.leads:
                return address, status
        problems += errors or ["no router leads"]
        return "", router_pb2.GetClusterStatusResponse()

    async def _kv_status(self, problems: list[str], address: str) -> kvmanager_pb2.GetKvStatusResponse | None:
        ask = self._manager(address).GetKvStatus
        return await self._ask(problems, f"the kvmanager at {address}", ask, _KV_STATUS, _KV_SECONDS)

    async def _ask(
        self,
        problems: list[str],
        whom: str,
        method: Callable[..., Awaitable[_Answer]],
        question: object,
        counts_seconds: float = 0.0,
    ) -> _Answer | None:
        """counts_seconds: for so long an answer is not asked for again. One that failed always is."""
        until, kept = self._kept.get(whom, (0.0, None))
        if time.monotonic() < until:
            return kept  # type: ignore[no-any-return]
        try:
            answer = await method(question, timeout=_DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            problems.append(f"{whom} does not answer: {from_grpc(error).message}")
            return None
        self._kept[whom] = time.monotonic() + counts_seconds, answer
        return answer

    def _router(self, address: str) -> router_pb2_grpc.RouterStub:
        return router_pb2_grpc.RouterStub(self._channel(address, CallerRole.ROUTER))  # type: ignore[no-untyped-call]

    def _manager(self, address: str) -> kvmanager_pb2_grpc.KVManagerStub:
        channel = self._channel(address, CallerRole.KVMANAGER)
        return kvmanager_pb2_grpc.KVManagerStub(channel)  # type: ignore[no-untyped-call]

    def _channel(self, address: str, callee: CallerRole) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._routers.open(address, callee)
        return channel


_STATUS = router_pb2.GetClusterStatusRequest()
_LIST = router_pb2.ListAdaptersRequest()
_KV_STATUS = kvmanager_pb2.GetKvStatusRequest()


def _healths(
    table: ProcessTable, status: router_pb2.GetClusterStatusResponse, answered: set[str]
) -> Mapping[str, str]:
    """A process is well when it has just answered, or the router hears it. Other apiservers and routers are
    believed to be what the supervisor says."""
    heard = {one.info.worker_id for one in status.workers}
    well = {str(role["name"]): _is_heard(role, heard, answered) for role in table.roles}
    return {name: HEALTHY if is_well else "no answer" for name, is_well in well.items()}


def _is_heard(role: Mapping[str, object], heard: set[str], answered: set[str]) -> bool:
    match role["role"]:
        case "kvmanager":
            return role["listen"] in answered
        case kind if kind in _WORKER_ROLES:
            return role["name"] in heard
    return True
