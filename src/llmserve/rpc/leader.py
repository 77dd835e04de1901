"""Finds the router that leads, and asks it: for the record of a request, or to bring a changed manifest
to the cluster."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import grpc.aio

from llmserve.config.changes import Changes, LiveChange, NeedsRestart
from llmserve.core.errors import LLMServeError, NotLeader, Unavailable
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.client import CONNECT_SECONDS, Backoff, open_channel
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.status import from_grpc

# A leader that ended is followed within seconds: those who look for the next one look often.
_LONGEST_PAUSE_SECONDS = 0.2
# A router without others may be that busy. A refused connection is noticed at once, a silent host only then.
_ALONE_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class RouterAddresses:
    """The routers of a cluster. addresses: HOST:PORT of each."""

    addresses: tuple[str, ...]
    credentials: Credentials = NO_CREDENTIALS

    def open(self, address: str, callee: CallerRole = CallerRole.ROUTER) -> grpc.aio.Channel:
        """Returns a channel to one of them, which the caller closes. callee: the role of another process that
        is asked instead, because a router has named its address."""
        return self._open(address, CONNECT_SECONDS, callee)

    def open_patiently(self, address: str) -> grpc.aio.Channel:
        """As open, for a single call. It is not lost if the only router is too busy to greet at once."""
        seconds = CONNECT_SECONDS if len(self.addresses) > 1 else _ALONE_CONNECT_SECONDS
        return self._open(address, seconds, CallerRole.ROUTER)

    def _open(self, address: str, connect_seconds: float, callee: CallerRole) -> grpc.aio.Channel:
        return open_channel(address, self.credentials, callee, connect_seconds)


class RouterSelector:
    """Stays with one router until it fails, then tries each of the others without a pause. Pauses before the
    next round: shortly when there are several routers, longer and longer when there is one."""

    def __init__(self, addresses: Sequence[str]) -> None:
        assert addresses, "no router is known"
        self._addresses = tuple(addresses)
        self._current = 0
        self._failed = 0  # in a row
        self._backoff = Backoff(max_seconds=_LONGEST_PAUSE_SECONDS) if self.has_others else Backoff()

    @property
    def address(self) -> str:
        """The one to talk to."""
        return self._addresses[self._current]

    @property
    def has_others(self) -> bool:
        return len(self._addresses) > 1

    def __str__(self) -> str:
        return " or ".join(self._addresses)

    def succeeded(self) -> None:
        self._failed = 0
        self._backoff.reset()

    async def failed(self) -> None:
        """Turns to the next router. Raises CancelledError like Backoff.pause in a task that was cancelled."""
        self._failed += 1
        self._current = (self._current + 1) % len(self._addresses)
        if self._failed % len(self._addresses) == 0:
            await self._backoff.pause()
        else:
            self._backoff.check()


_T = TypeVar("_T")


async def ask_leader(
    routers: RouterAddresses, ask: Callable[[router_pb2_grpc.RouterStub], Awaitable[_T]]
) -> _T:
    """Tries the routers in turn. Errors: Unavailable when none leads or answers; what the leader says, also
    when that is Unavailable, and not that another one does not lead."""
    away: LLMServeError | None = None
    for address in routers.addresses:
        async with routers.open_patiently(address) as channel:
            try:
                return await ask(router_pb2_grpc.RouterStub(channel))  # type: ignore[no-untyped-call]
            except grpc.aio.AioRpcError as error:
                said = from_grpc(error)
                if not isinstance(said, Unavailable):
                    raise said from error
                if away is None or not isinstance(said, NotLeader):
                    away = said
    raise away or Unavailable("no router is known")


_EXPLAIN_SECONDS = 8.0  # the router gives its apiservers 5 s


async def explain_request(routers: RouterAddresses, request_id: str, tenant: str = "") -> bytes:
    """JSON. tenant: whose it must be; empty: anybody's. Errors: NotFound,
    Unavailable."""
    question = router_pb2.RecordQuestion(request_id=request_id, tenant=tenant)
    request = router_pb2.ExplainRequest(record=question)
    answer = await ask_leader(routers, lambda stub: stub.Explain(request, timeout=_EXPLAIN_SECONDS))
    return bytes(answer.record)


async def list_requests(
    routers: RouterAddresses, asker: str, question: router_pb2.RowsQuestion
) -> router_pb2.ListRequestsResponse:
    """Asks all apiservers but the asker. Errors: Unavailable."""
    request = router_pb2.ListRequestsRequest(asker=asker, rows=question)
    answer: router_pb2.ListRequestsResponse = await ask_leader(
        routers, lambda stub: stub.ListRequests(request, timeout=_EXPLAIN_SECONDS)
    )
    return answer


_RELOAD_SECONDS = 15.0  # the router asks its apiservers twice, and gives them 5 s each time


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The result of a reload. failed: processes that did not confirm it, and why."""

    changes: Changes
    failed: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Returns the result as text for people."""
        lines = [f"live: {one}" for one in self.changes.live]
        lines += [f"left: {one}" for one in self.changes.restart]
        lines += [f"FAILED: {one}" for one in self.failed]
        return lines or ["nothing has changed"]

    def as_json(self) -> dict[str, Any]:
        """Returns the result as `/admin/reload` and `llmserve reload --json` show it."""
        changes = asdict(self.changes)
        return {"live": changes["live"], "needs_restart": changes["restart"], "failed": self.failed}


async def reload_cluster(
    routers: RouterAddresses, text: str, file: str, *, only_check: bool = False
) -> Reloaded:
    """text: the whole manifest; file: what messages call it. only_check: returns what a reload would change.
    Errors: InvalidRequest with path and line when it is wrong, Unavailable when no router leads; nothing is
    changed then."""
    request = router_pb2.ReloadRequest(text=text, file=file, only_check=only_check)
    return decode_reloaded(
        await ask_leader(routers, lambda stub: stub.Reload(request, timeout=_RELOAD_SECONDS))
    )


def encode_reloaded(reloaded: Reloaded) -> router_pb2.ReloadResponse:
    return router_pb2.ReloadResponse(
        live=[
            router_pb2.ManifestChange(path=one.path, before=one.before, after=one.after)
            for one in reloaded.changes.live
        ],
        restart=[
            router_pb2.NeedsRestart(path=one.path, processes=one.processes)
            for one in reloaded.changes.restart
        ],
        failed=reloaded.failed,
    )


def decode_reloaded(message: router_pb2.ReloadResponse) -> Reloaded:
    changes = Changes(
        tuple(LiveChange(one.path, one.before, one.after) for one in message.live),
        tuple(NeedsRestart(one.path, tuple(one.processes)) for one in message.restart),
    )
    return Reloaded(changes, tuple(message.failed))
