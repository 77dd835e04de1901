"""What a look asks, and how often."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from llmserve.apiserver.console.look import ClusterLook
from llmserve.apiserver.console.processes import ClusterFile
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, router_pb2
from llmserve.rpc.leader import RouterAddresses

_MANAGER = "kv:1"


class FakeServices:
    """A router and a KV manager behind channels. asked: how often each method was called. callees: whom a
    channel expects at an address."""

    addresses = ("router:1",)

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.callees: dict[str, CallerRole] = {}
        self.manager_answers = True

    def open(self, address: str, callee: CallerRole = CallerRole.ROUTER) -> "FakeServices":
        self.callees[address] = callee
        return self

    def unary_unary(self, path: str, *_: Any, **__: Any) -> Callable[..., Awaitable[Message]]:
        method = path.rpartition("/")[2]

        async def call(request: Message, timeout: float) -> Message:
            self.asked[method] += 1
            if method == "GetKvStatus":
                if not self.manager_answers:
                    nothing = grpc.aio.Metadata()
                    raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "away", "")
                tiers = [kvmanager_pb2.TierStatus(name="memory", load_bytes=7, store_bytes=8)]
                return kvmanager_pb2.GetKvStatusResponse(tiers=tiers)
            if method == "ListAdapters":
                return router_pb2.ListAdaptersResponse()
            index = router_pb2.PrefixIndexStatus(followed=[_MANAGER])
            return router_pb2.GetClusterStatusResponse(leads=True, prefix_index=index)

        return call

    def __getattr__(self, name: str) -> Any:
        if name in ("unary_stream", "stream_unary", "stream_stream"):
            return self.unary_unary
        raise AttributeError(name)


def _look(services: FakeServices) -> ClusterLook:
    return ClusterLook("mine", "apiserver-0", cast("RouterAddresses", services), ClusterFile(None))


async def test_who_looks_all_the_time_asks_seldom_for_what_seldom_changes() -> None:
    services = FakeServices()
    look = _look(services)
    for _ in range(4):
        seen = await look.again()
        assert seen.problems == ()
        assert [(tier.load_bytes, tier.store_bytes) for tier in seen.tiers] == [(7, 8)]
    assert services.asked == {"GetClusterStatus": 4, "ListAdapters": 1, "GetKvStatus": 1}
    await look.now()
    assert services.asked == {"GetClusterStatus": 5, "ListAdapters": 2, "GetKvStatus": 2}


async def test_what_failed_is_asked_again_at_once() -> None:
    services = FakeServices()
    look = _look(services)
    services.manager_answers = False
    for _ in range(2):
        (problem,) = (await look.again()).problems
        assert problem.startswith(f"the kvmanager at {_MANAGER} does not answer")
    services.manager_answers = True
    assert (await look.again()).problems == ()
    assert services.asked["GetKvStatus"] == 3


async def test_each_channel_expects_the_certificate_of_the_role_that_is_there() -> None:
    services = FakeServices()
    await _look(services).now()
    assert services.callees == {"router:1": CallerRole.ROUTER, _MANAGER: CallerRole.KVMANAGER}
