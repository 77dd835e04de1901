"""Internal calls from outside: without credentials, with wrong ones, and with those of another role."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmserve.core.errors import Forbidden
from llmserve.kvstore.role import KVManagerRole
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.client import open_channel
from llmserve.rpc.credentials import CallerIdentity, CallerRole, Credentials
from llmserve.rpc.gen.llmserve.v1 import common_pb2, kvmanager_pb2, router_pb2
from llmserve.rpc.permissions import check_permission

SECRET, WRONG = b"s" * 64, b"w" * 64
SERVICES = {"router": router_pb2, "kvmanager": kvmanager_pb2}
METHODS = [
    (name, service.full_name, method.name, method.client_streaming, method.server_streaming)
    for name, module in SERVICES.items()
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def credentials(role: CallerRole, name: str = "me", secret: bytes | None = SECRET) -> Credentials:
    return Credentials(CallerIdentity(role, name), secret)


class Servers:
    """A router and a KV manager that ask for credentials."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.addresses: dict[str, str] = {}

    async def start(self) -> None:
        ours = credentials(CallerRole.ROUTER, "router-0")
        router = RouterRole(RouterSettings(), listen="127.0.0.1:0", credentials=ours)
        manager = KVManagerRole(listen="127.0.0.1:0", credentials=credentials(CallerRole.KVMANAGER))
        for name, role in (("router", router), ("kvmanager", manager)):
            self._stack.push_async_callback(role.aclose)
            await role.start()
            self.addresses[name] = f"127.0.0.1:{role.port}"

    async def channel(self, name: str, caller: Credentials) -> grpc.aio.Channel:
        return await self._stack.enter_async_context(open_channel(self.addresses[name], caller))


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        found = Servers(stack)
        await found.start()
        yield found


async def call(channel: grpc.aio.Channel, path: str, streams: tuple[bool, bool], body: bytes = b"") -> None:
    """streams: whether the client and the server stream. Returns when the call has ended or has answered.
    Errors: AioRpcError."""

    async def bodies() -> AsyncIterator[bytes]:
        yield body

    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    started: Any = kinds[streams](path)(bodies() if streams[0] else body, timeout=5.0)
    if streams[1]:
        await started.read()
    else:
        await started


async def refused(
    channel: grpc.aio.Channel, path: str, streams: tuple[bool, bool]
) -> tuple[grpc.StatusCode, str]:
    """The status and the message."""
    try:
        await call(channel, path, streams)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("secret", [None, WRONG], ids=["none", "wrong"])
async def test_strangers_may_call_nothing(servers: Servers, secret: bytes | None) -> None:
    for role in CallerRole:
        for name in SERVICES:
            channel = await servers.channel(name, credentials(role, secret=secret))
            for where, service, method, *streams in METHODS:
                if where == name:
                    code, _ = await refused(channel, f"/{service}/{method}", (streams[0], streams[1]))
                    assert code is grpc.StatusCode.UNAUTHENTICATED, (role, method)


def _may_call(role: CallerRole, path: str) -> bool:
    try:
        check_permission(CallerIdentity(role, "me"), path)
    except Forbidden:
        return False
    return True


async def test_a_role_may_call_what_it_needs_and_nothing_else(servers: Servers) -> None:
    for role in CallerRole:
        for name in SERVICES:
            channel = await servers.channel(name, credentials(role))
            for where, service, method, *streams in METHODS:
                path = f"/{service}/{method}"
                if where == name and not (method == "Watch" and _may_call(role, path)):  # it has no end
                    code, told = await refused(channel, path, (streams[0], streams[1]))
                    assert code is not grpc.StatusCode.UNAUTHENTICATED
                    assert ("may not call" in told) is not _may_call(role, path), (role, method, told)


@pytest.mark.parametrize("secret", [None, WRONG, SECRET])
async def test_health_is_open(servers: Servers, secret: bytes | None) -> None:
    for name in SERVICES:
        channel = await servers.channel(name, credentials(CallerRole.WORKER, secret=secret))
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5.0)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("router", "Register", router_pb2.RegisterRequest(worker=common_pb2.WorkerInfo(worker_id="other"))),
        ("router", "Heartbeat", router_pb2.HeartbeatRequest(worker_id="other")),
        ("router", "Deregister", router_pb2.DeregisterRequest(worker_id="other")),
        ("kvmanager", "AttachStore", kvmanager_pb2.AttachStoreRequest(worker_id="other")),
        ("kvmanager", "PreparePrompt", kvmanager_pb2.PreparePromptRequest(worker_id="other")),
        ("kvmanager", "SettleStore", kvmanager_pb2.SettleStoreRequest(worker_id="other")),
        ("kvmanager", "Report", kvmanager_pb2.KvReport(worker_id="other")),
    ],
)
async def test_a_worker_speaks_for_itself_only(
    servers: Servers, name: str, method: str, message: Any
) -> None:
    channel = await servers.channel(name, credentials(CallerRole.WORKER))
    service = {"router": "Router", "kvmanager": "KVManager"}[name]
    streams = next((one[3], one[4]) for one in METHODS if one[2] == method)
    with pytest.raises(grpc.aio.AioRpcError, match="worker me may not speak for 'other'") as raised:
        await call(channel, f"/llmserve.v1.{service}/{method}", streams, message.SerializeToString())
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_what_operators_change_and_who_is_refused_is_in_the_audit_log(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="llmserve.rpc.audit")
    operator = await servers.channel("router", credentials(CallerRole.OPERATOR, "llmserve drain"))
    drain = router_pb2.DrainRequest(worker_id="decode-7").SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError):
        await call(operator, "/llmserve.v1.Router/Drain", (False, False), drain)
    await call(operator, "/llmserve.v1.Router/GetClusterStatus", (False, False))
    exporter = await servers.channel("kvmanager", credentials(CallerRole.OPERATOR))
    await refused(exporter, "/llmserve.v1.KVManager/ExportBlocks", (False, True))
    stranger = await servers.channel("router", credentials(CallerRole.WORKER, "me", WRONG))
    await refused(stranger, "/llmserve.v1.Router/Drain", (False, False))
    worker = await servers.channel("router", credentials(CallerRole.WORKER))
    await refused(worker, "/llmserve.v1.Router/Reload", (False, False))
    lines = [(record.name.rpartition(".")[2], json.loads(record.getMessage())) for record in caplog.records]
    said = [(kind, line["role"], line["caller"], line["what"], line["result"]) for kind, line in lines]
    router = "/llmserve.v1.Router"
    assert said == [
        ("calls", "operator", "llmserve drain", f"{router}/Drain", "NotFound"),
        ("calls", "operator", "me", "/llmserve.v1.KVManager/ExportBlocks", "NotFound"),
        ("refusals", "worker", "me", f"{router}/Drain", "NotAuthenticated"),
        ("refusals", "worker", "me", f"{router}/Reload", "Forbidden"),
    ]
    assert lines[0][1]["worker_id"] == "decode-7"
    assert all(line["address"].startswith("ipv4:127.0.0.1") for _, line in lines)
    assert SECRET.decode() not in caplog.text


async def test_an_apiserver_speaks_for_itself_only(servers: Servers) -> None:
    channel = await servers.channel("router", credentials(CallerRole.APISERVER))
    hello = router_pb2.RouterSessionRequest(hello=router_pb2.Hello(apiserver_id="other"))
    body = router_pb2.RouterSessionRequests(messages=[hello]).SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError, match="may not speak for 'other'"):
        await call(channel, "/llmserve.v1.Router/Session", (True, True), body)
