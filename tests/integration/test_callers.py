"""Internal calls from outside: without credentials, with wrong ones, and with those of another role."""

import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmserve.core.errors import Forbidden
from llmserve.kvstore.role import KVManagerRole
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.callers import CallerIdentity, CallerRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.gen.llmserve.v1 import common_pb2, kvmanager_pb2, router_pb2
from llmserve.rpc.permissions import check_permission
from llmserve.rpc.wires.tls import client_tls
from tests.support.certificates import credentials_in, make_certificates

SECRET, WRONG = b"s" * 64, b"w" * 64
SERVICES = {"router": router_pb2, "kvmanager": kvmanager_pb2}
METHODS = [
    (name, service.full_name, method.name, method.client_streaming, method.server_streaming)
    for name, module in SERVICES.items()
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


Credential = Callable[[CallerRole, str], Credentials]  # of a role and a name


def by_secret(secret: bytes | None) -> Credential:
    return lambda role, name: Credentials(CallerIdentity(role, name), secret)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Credential, dict[str, Credential]]]:
    """The credentials of a cluster and those of strangers, by how it checks them."""
    ours, theirs = (tmp_path_factory.mktemp(name) for name in ("ours", "theirs"))
    make_certificates(ours)
    make_certificates(theirs)
    nothing = by_secret(None)
    by_certificate = partial(credentials_in, ours)
    return {
        "secret": (by_secret(SECRET), {"none": nothing, "wrong": by_secret(WRONG)}),
        "certificates": (
            by_certificate,
            {"none": nothing, "wrong": partial(credentials_in, theirs), "secret": by_secret(SECRET)},
        ),
    }


class Servers:
    """A router and a KV manager that ask for credentials. strangers: what is not of the cluster."""

    def __init__(
        self, stack: AsyncExitStack, credentials: Credential, strangers: dict[str, Credential]
    ) -> None:
        self._stack, self.credentials, self.strangers = stack, credentials, strangers
        self.addresses: dict[str, str] = {}

    async def start(self) -> None:
        ours = self.credentials(CallerRole.ROUTER, "router-0")
        router = RouterRole(RouterSettings(), listen="127.0.0.1:0", credentials=ours)
        theirs = self.credentials(CallerRole.KVMANAGER, "kvmanager-0")
        manager = KVManagerRole(listen="127.0.0.1:0", credentials=theirs)
        for name, role in (("router", router), ("kvmanager", manager)):
            self._stack.push_async_callback(role.aclose)
            await role.start()
            self.addresses[name] = f"127.0.0.1:{role.port}"

    async def channel(self, name: str, caller: Credentials) -> grpc.aio.Channel:
        opened = open_channel(self.addresses[name], caller, CallerRole(name))
        return await self._stack.enter_async_context(opened)


@pytest.fixture(params=["secret", "certificates"])
async def servers(request: pytest.FixtureRequest, kinds: dict[str, Any]) -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        found = Servers(stack, *kinds[request.param])
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
    started: Any = kinds[streams](path)(bodies() if streams[0] else body, timeout=30.0)
    if streams[1]:
        await started.read()
    else:
        await started


_TRIES = 5


async def refused(
    channel: grpc.aio.Channel, path: str, streams: tuple[bool, bool]
) -> tuple[grpc.StatusCode, str]:
    """The status and the message. Once in a while, a refusal reaches gRPC's client while that still begins
    the call: it then does not tell the status, so it is asked again."""
    for _ in range(_TRIES):
        try:
            await call(channel, path, streams)
        except grpc.aio.AioRpcError as error:
            if error.details() != "Internal error from Core":
                return error.code(), error.details() or ""
        else:
            return grpc.StatusCode.OK, ""
    raise AssertionError(f"{path}: gRPC's client does not tell the status")


# Who cannot show a certificate gets no connection.
REFUSED = {"secret": {grpc.StatusCode.UNAUTHENTICATED}, "certificates": {grpc.StatusCode.UNAVAILABLE}}


async def test_strangers_may_call_nothing(servers: Servers, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["servers"]
    for role, stranger in itertools.product(CallerRole, servers.strangers):
        for name in SERVICES:
            channel = await servers.channel(name, servers.strangers[stranger](role, "me"))
            for where, service, method, *streams in METHODS:
                if where == name:
                    code, told = await refused(channel, f"/{service}/{method}", (streams[0], streams[1]))
                    assert code in REFUSED[kind], (stranger, role, method, told)


def _may_call(role: CallerRole, path: str) -> bool:
    try:
        check_permission(CallerIdentity(role, "me"), path)
    except Forbidden:
        return False
    return True


async def test_a_role_may_call_what_it_needs_and_nothing_else(servers: Servers) -> None:
    for role in CallerRole:
        for name in SERVICES:
            channel = await servers.channel(name, servers.credentials(role, "me"))
            for where, service, method, *streams in METHODS:
                path = f"/{service}/{method}"
                if where == name and not (method == "Watch" and _may_call(role, path)):  # it has no end
                    code, told = await refused(channel, path, (streams[0], streams[1]))
                    assert code is not grpc.StatusCode.UNAUTHENTICATED
                    assert ("may not call" in told) is not _may_call(role, path), (role, method, told)


@pytest.mark.parametrize("servers", ["secret"], indirect=True)
@pytest.mark.parametrize("secret", [None, WRONG, SECRET])
async def test_health_is_open(servers: Servers, secret: bytes | None) -> None:
    for name in SERVICES:
        channel = await servers.channel(name, by_secret(secret)(CallerRole.WORKER, "me"))
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=30.0)
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
    channel = await servers.channel(name, servers.credentials(CallerRole.WORKER, "me"))
    service = {"router": "Router", "kvmanager": "KVManager"}[name]
    streams = next((one[3], one[4]) for one in METHODS if one[2] == method)
    with pytest.raises(grpc.aio.AioRpcError, match="worker me may not speak for 'other'") as raised:
        await call(channel, f"/llmserve.v1.{service}/{method}", streams, message.SerializeToString())
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("servers", ["secret"], indirect=True)
async def test_what_operators_change_and_who_is_refused_is_in_the_audit_log(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="llmserve.rpc.audit")
    operator = await servers.channel("router", servers.credentials(CallerRole.OPERATOR, "llmserve drain"))
    drain = router_pb2.DrainRequest(worker_id="decode-7").SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError):
        await call(operator, "/llmserve.v1.Router/Drain", (False, False), drain)
    await call(operator, "/llmserve.v1.Router/GetClusterStatus", (False, False))
    exporter = await servers.channel("kvmanager", servers.credentials(CallerRole.OPERATOR, "me"))
    await refused(exporter, "/llmserve.v1.KVManager/ExportBlocks", (False, True))
    stranger = await servers.channel("router", by_secret(WRONG)(CallerRole.WORKER, "me"))
    await refused(stranger, "/llmserve.v1.Router/Drain", (False, False))
    worker = await servers.channel("router", servers.credentials(CallerRole.WORKER, "me"))
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
    channel = await servers.channel("router", servers.credentials(CallerRole.APISERVER, "me"))
    hello = router_pb2.RouterSessionRequest(hello=router_pb2.Hello(apiserver_id="other"))
    body = router_pb2.RouterSessionRequests(messages=[hello]).SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError, match="may not speak for 'other'"):
        await call(channel, "/llmserve.v1.Router/Session", (True, True), body)


@pytest.mark.parametrize("servers", ["certificates"], indirect=True)
async def test_a_certificate_is_good_for_its_own_role_only(servers: Servers) -> None:
    """Whatever the call itself says: here it says what another process would."""
    certificates = servers.credentials(CallerRole.WORKER, "me").certificates
    for role in set(CallerRole) - {CallerRole.WORKER}:
        claims = Credentials(CallerIdentity(role, "me"), SECRET, certificates)
        for name in SERVICES:
            channel = await servers.channel(name, claims)
            for where, service, method, *streams in METHODS:
                path = f"/{service}/{method}"
                if where == name and _may_call(role, path):
                    code, told = await refused(channel, path, (streams[0], streams[1]))
                    assert code is grpc.StatusCode.UNAUTHENTICATED, (role, method)
                    assert "the certificate of worker * is not that of" in told


@pytest.mark.parametrize("servers", ["certificates"], indirect=True)
async def test_a_certificate_alone_says_no_name(servers: Servers) -> None:
    certificates = servers.credentials(CallerRole.WORKER, "me").certificates
    assert certificates is not None
    tls, options = client_tls(certificates.current(), CallerRole.ROUTER, ())
    async with grpc.aio.secure_channel(servers.addresses["router"], tls, options=options) as channel:
        code, told = await refused(channel, "/llmserve.v1.Router/Heartbeat", (False, False))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "shows no credentials" in told


@pytest.mark.parametrize("servers", ["certificates"], indirect=True)
async def test_a_worker_does_not_pass_for_a_router(servers: Servers) -> None:
    """Who calls looks whose certificate it meets."""
    worker = servers.credentials(CallerRole.WORKER, "me")
    opened = open_channel(servers.addresses["kvmanager"], worker, CallerRole.ROUTER)
    async with opened as channel:
        code, _ = await refused(channel, "/llmserve.v1.Router/Heartbeat", (False, False))
    assert code is grpc.StatusCode.UNAVAILABLE
