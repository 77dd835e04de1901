"""Two models in one cluster of simulated engines: processes as the plan starts them, over real gRPC."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bench.ports import free_port
from llmserve.apiserver.links.requests import AdmissionRefused, PlacementEnd
from llmserve.apiserver.links.router import RouterLink
from llmserve.config.load import load_manifest
from llmserve.config.plan import plan_local
from llmserve.config.plan_types import ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.core.ids import ApiserverId
from llmserve.core.request import Outcome
from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.models.files import silent
from llmserve.router.role import RouterRole
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.leader import RouterAddresses
from llmserve.workers.__main__ import arguments, build_worker
from llmserve.workers.build import prepare_model

SOON = 30.0
MANIFEST = """
kind: LLMServe
models:
- {source: "hub:sim/large", engine: {max_decode_concurrency: 8}}
- source: hub:sim/small
  disaggregated: false
  engine: {max_decode_concurrency: 2, sim: {block_size_tokens: 32}}
engine: {kind: sim, sim: {decode_step_seconds: 0.001, vocab_size: 64}}
observability: {metrics: false}
"""


async def _start_worker(
    stack: AsyncExitStack, spec: ProcessSpec, cluster: Manifest, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starts the worker in this process, with the command line that the plan gives it."""
    alone = replace(spec, kvmanagers=())
    monkeypatch.setattr(sys, "argv", ["workers", *alone.arguments(str(path), str(path.parent))])
    flags = arguments()
    worker = build_worker(flags, cluster, prepare_model(cluster.for_model(flags.model), None, silent))
    stack.push_async_callback(worker.aclose)
    await worker.start()


class Cluster:
    """The router with its workers, and the link of an apiserver to it."""

    def __init__(self, link: RouterLink, stub: router_pb2_grpc.RouterStub) -> None:
        self._link, self._stub, self._count = link, stub, 0

    async def workers(self) -> dict[str, set[str]]:
        """The registered workers of each model."""
        status = await self._stub.GetClusterStatus(router_pb2.GetClusterStatusRequest(), timeout=SOON)
        found: dict[str, set[str]] = {}
        for worker in status.workers:
            found.setdefault(worker.info.model, set()).add(worker.info.worker_id)
        return found

    async def place(self, model: str, timeout: float = SOON) -> tuple[str, set[str]]:
        """Returns the name of a request that has its place and keeps it, and its workers."""
        self._count += 1
        name = f"{model}-{self._count}"
        admit = router_pb2.Admit(
            request_id=name, tenant="t", model=model, prompt_tokens=40, timeout_seconds=timeout
        )
        placed = await self._link.admit(admit)
        chosen = [placed.decode, *([placed.prefill] if placed.HasField("prefill") else [])]
        assert {one.model for one in chosen} == {model}
        return name, {one.worker_id for one in chosen}

    def done(self, name: str) -> None:
        self._link.done(name, PlacementEnd(Outcome.COMPLETED, 3))


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    path = tmp_path / "llmserve.yaml"
    path.write_text(MANIFEST)
    manifest = load_manifest(path)
    specs = plan_local(manifest, (), free_port).processes
    (router,) = (spec for spec in specs if spec.name == "router-0")
    assert router.listen is not None
    async with AsyncExitStack() as stack:
        role = RouterRole.of(manifest, listen=router.listen)
        stack.push_async_callback(role.aclose)
        await role.start()
        workers = [spec for spec in specs if spec.role.is_worker]
        for spec in workers:
            await _start_worker(stack, spec, manifest, path, monkeypatch)
        routers = RouterAddresses((router.listen,))
        link = RouterLink(routers, ApiserverId("api"), ApiserverMetrics(CollectorRegistry()))
        stack.push_async_callback(link.aclose)
        link.start()
        channel = await stack.enter_async_context(open_channel(router.listen))
        found = Cluster(link, router_pb2_grpc.RouterStub(channel))  # type: ignore[no-untyped-call]
        async with asyncio.timeout(SOON):
            while True:
                if sum(map(len, (await found.workers()).values())) == len(workers):
                    break
                await asyncio.sleep(0.02)
        yield found


async def test_workers_register_under_their_model(cluster: Cluster) -> None:
    assert await cluster.workers() == {
        "large": {"large-prefill-0", "large-decode-0"},
        "small": {"small-aggregated-0"},
    }


async def test_no_request_reaches_a_worker_of_another_model(cluster: Cluster) -> None:
    placed = await asyncio.gather(*(cluster.place(model) for model in ("large", "small") * 2))
    for name, workers in placed:
        assert all(worker.startswith(name.partition("-")[0]) for worker in workers)
    assert {worker for _, workers in placed for worker in workers} >= {"large-decode-0", "small-aggregated-0"}


async def test_a_model_without_places_delays_no_other(cluster: Cluster) -> None:
    held = [await cluster.place("small") for _ in range(2)]
    waiting = [asyncio.create_task(cluster.place("small")) for _ in range(40)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    for _ in range(8):
        name, workers = await cluster.place("large", timeout=1.0)
        assert "large-decode-0" in workers or "large-prefill-0" in workers
        cluster.done(name)
    cluster.done(held[0][0])
    done, _ = await asyncio.wait(waiting, timeout=SOON, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result()[1] for task in done] == [{"small-aggregated-0"}]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_model_that_nobody_serves_is_refused_when_its_time_is_over(cluster: Cluster) -> None:
    with pytest.raises(AdmissionRefused, match="no prefill and no decode worker of model absent"):
        await cluster.place("absent", timeout=0.3)
    name, _ = await cluster.place("small")
    cluster.done(name)
