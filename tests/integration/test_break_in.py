"""A whole cluster with simulated engines, and a stranger who reaches all its ports.

The stranger sends random bytes to every port that listens: of the gRPC servers, the channel between engines,
the transports (NIXL's and UCX's ports are those of their libraries), metrics and HTTP.
LLMSERVE_KNOCKS says how often it knocks at each.
"""

import asyncio
import errno
import gc
import os
import random
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from prometheus_client import CollectorRegistry

from llmserve.apiserver.http.listener.server import HttpServer
from llmserve.config.schema import EngineConfig, KvCacheConfig, SimSpec, TransferConfig
from llmserve.config.schema.limits import SecurityLimits
from llmserve.core.ids import WorkerId
from llmserve.core.request import WorkerRole
from llmserve.engines.kv_transfer import query_status
from llmserve.engines.sim.engine import SimEngine
from llmserve.engines.sim.link import open_handover_link
from llmserve.engines.sim.step import RealStepTimer
from llmserve.engines.spec import EngineSpec
from llmserve.kvstore.role import KVManagerRole
from llmserve.metrics.registry import serve_metrics
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.callers import CallerIdentity, CallerRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.credentials import Credentials, make_secret
from llmserve.rpc.gen.llmserve.v1 import router_pb2, worker_pb2
from llmserve.rpc.gen.llmserve.v1.router_pb2_grpc import RouterStub
from llmserve.workers.worker import Worker, WorkerOptions
from tests.integration.test_callers import refused
from tests.support.certificates import credentials_in, make_certificates

KNOCKS = int(os.environ.get("LLMSERVE_KNOCKS", "200"))
WAITS = 2  # knocks at each port that stay until they are hung up on; NIXL does that once a second
MOST_BYTES = 10_000
WORKER_METHODS = [
    (f"/llmserve.v1.Worker/{method.name}", method.client_streaming, method.server_streaming)
    for method in worker_pb2.DESCRIPTOR.services_by_name["Worker"].methods
]
BEGINNINGS = [
    b"",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",  # gRPC
    b"\x16\x03\x01",  # TLS
    b"LSHELLO\x01channel",
    b"LSHELLO\x01transfer",
    b"LSKV\x00\x00\x00\x02",  # tcp
    b"\x00\x00\x00\x10",  # a message of the channel
    b"GET /metrics HTTP/1.1\r\n",
]


@dataclass
class Place:
    """A cluster, and all ports at which it listens."""

    router: RouterRole
    worker: Worker
    engine: SimEngine
    ports: set[tuple[str, int]] = field(default_factory=set)

    @property
    def channel(self) -> str:
        """HOST:PORT of the channel between engines."""
        assert self.engine._link is not None
        return self.engine._link.endpoint


def listening() -> set[tuple[str, int]]:
    """The addresses and TCP ports at which this process listens."""
    found = psutil.Process().net_connections("tcp")
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


@pytest.fixture(params=["secret", "certificates"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param == "secret":
        make_secret(tmp_path / "secret")
        wires = {"LLMSERVE_CLUSTER_SECRET_FILE": str(tmp_path / "secret")}
    else:
        make_certificates(tmp_path)
        wires = {"LLMSERVE_CERTIFICATES": str(tmp_path)}
    before = listening()
    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in wires.items():
            patch.setenv(name, value)
        found = await started(stack)
        found.ports = listening() - before
        yield found


async def no_app(scope: Any, receive: Any, send: Any) -> None:
    """What is behind the HTTP port: it answers nothing."""


async def started(stack: AsyncExitStack) -> Place:
    metrics = await serve_metrics(CollectorRegistry(), "127.0.0.1", 0)
    stack.push_async_callback(metrics.aclose)
    http = HttpServer(no_app, "127.0.0.1:0", limits=SecurityLimits())
    stack.push_async_callback(http.aclose)
    await http.start()
    manager = KVManagerRole(
        listen="127.0.0.1:0", credentials=Credentials.read(CallerRole.KVMANAGER, "kvmanager-0")
    )
    stack.push_async_callback(manager.aclose)
    await manager.start()
    kvmanager = f"127.0.0.1:{manager.port}"
    router = RouterRole(
        RouterSettings(),
        listen="127.0.0.1:0",
        kvmanagers=(kvmanager,),
        credentials=Credentials.read(CallerRole.ROUTER, "router-0"),
    )
    stack.push_async_callback(router.aclose)
    await router.start()
    spec = EngineSpec(
        worker_id=WorkerId("decode-0"),
        epoch=1,
        role=WorkerRole.DECODE,
        model_dir=None,
        model_name="sim",
        model_identity="sim@1",
        engine=EngineConfig(kind="sim", sim=SimSpec(), dtype="float32"),
        kv_cache=KvCacheConfig(page_size_kb=1),
        transfer=TransferConfig(),
    )
    engine = SimEngine(spec, open_handover_link, RealStepTimer())
    options = WorkerOptions(
        "127.0.0.1:0",
        routers=(f"127.0.0.1:{router.port}",),
        kvmanagers=(kvmanager,),
        credentials=Credentials.read(CallerRole.WORKER, "decode-0"),
    )
    worker = Worker(spec, options, engine, CollectorRegistry())
    stack.push_async_callback(worker.aclose)
    await worker.start()
    return Place(router, worker, engine)


async def registered(place: Place) -> int:
    """The number of workers that the router knows, as an operator is told."""
    operator = Credentials.read(CallerRole.OPERATOR, "me")
    address = f"127.0.0.1:{place.router.port}"
    async with open_channel(address, operator, CallerRole.ROUTER) as channel:
        status = await RouterStub(channel).GetClusterStatus(  # type: ignore[no-untyped-call]
            router_pb2.GetClusterStatusRequest(), timeout=30.0
        )
    return len(status.workers)


def knock(port: tuple[str, int], knocks: int) -> None:
    """Sends random bytes on many connections, and hangs up, or waits for the other end to do so.
    Errors: TimeoutError when it does not."""
    rng = random.Random(knocks)
    for number in range(knocks):
        with suppress(ConnectionError), socket.create_connection(port, timeout=10.0) as sock:
            sock.sendall(rng.choice(BEGINNINGS) + rng.randbytes(rng.randrange(MOST_BYTES)))
            if number < WAITS and said_all(sock):
                while sock.recv(65536):
                    pass


def said_all(sock: socket.socket) -> bool:
    """Ends this direction. Returns False when the other end has hung up already."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return False
    return True


async def settles(count: Any, most: int) -> bool:
    """Whether a count comes down within some seconds."""
    for _ in range(100):
        gc.collect()
        if count() <= most:
            return True
        await asyncio.sleep(0.1)
    return False


@pytest.mark.timeout(60 + KNOCKS)
async def test_random_bytes_at_every_port_change_nothing(place: Place) -> None:
    async with asyncio.timeout(30.0):
        while await registered(place) != 1:  # noqa: ASYNC110 - in other tasks, and over gRPC
            await asyncio.sleep(0.02)
    assert len(place.ports) >= 7, "router, KV manager, worker, channel of engines, tcp, metrics, HTTP"
    elsewhere = {host for host, _ in place.ports} - {"127.0.0.1", "::ffff:127.0.0.1"}
    assert not elsewhere, "libraries listen on loopback, too"
    process = psutil.Process()
    knock_first = [asyncio.to_thread(knock, port, 1) for port in place.ports]
    await asyncio.gather(*knock_first)  # what is made once, such as threads of gRPC, is made now
    await asyncio.sleep(0.3)
    fds, threads, memory = process.num_fds(), threading.active_count(), process.memory_info().rss
    await asyncio.gather(*(asyncio.to_thread(knock, port, KNOCKS) for port in place.ports))
    assert await settles(process.num_fds, fds + 5), "connections of strangers stay open"
    assert await settles(threading.active_count, threads + 2), "threads of strangers stay"
    assert process.memory_info().rss - memory < 64 << 20
    assert place.ports <= listening()
    assert await registered(place) == 1
    worker = Credentials.read(CallerRole.WORKER, "decode-0")
    status = await query_status(place.channel, 5.0, worker)
    assert status.worker_id == "decode-0"


async def test_a_worker_is_called_by_whom_it_is_for(place: Place, tmp_path: Path) -> None:
    """With nothing, with what another cluster has, and with another role's credentials."""
    other, apiserver = tmp_path / "other", CallerIdentity(CallerRole.APISERVER, "me")
    make_certificates(other)
    strangers = [
        Credentials(),
        Credentials(apiserver, b"o" * 64),
        replace(credentials_in(other, CallerRole.APISERVER), secret=None),
        Credentials.read(CallerRole.ROUTER, "me"),
        Credentials.read(CallerRole.KVMANAGER, "me"),
        Credentials.read(CallerRole.WORKER, "me"),
    ]
    refusals = {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAVAILABLE,  # without TLS where it is needed
    }
    for stranger in strangers:
        async with open_channel(place.worker.address, stranger, CallerRole.WORKER) as channel:
            for path, *streams in WORKER_METHODS:
                code, told = await refused(channel, path, (streams[0], streams[1]))
                assert code in refusals, (stranger, path, told)
