"""Adapters from a name at the router to files of a host and slots of simulated engines: nothing is a fake."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from llmserve.config.schema import Manifest
from llmserve.config.schema.lora import Lora
from llmserve.core.adapters import AdapterTier, LoraShape
from llmserve.core.errors import InvalidRequest
from llmserve.core.request import FinishReason
from llmserve.models.adapters import AdapterCache, open_adapter_cache
from llmserve.router.adapters import lifecycle
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.adapters import decode_adapter_report, encode_tier
from llmserve.rpc.client import open_channel
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.status import from_grpc
from llmserve.workers.adapters import orders
from tests.integration.test_worker_service import Cluster, Stream
from tests.support.adapters import random_adapter, tiny_base

CALL_SECONDS = 20.0
LORA = LoraShape(slots=2, max_rank=16)


class Site:
    """A router and a worker. sources: directory of adapters, of which each has other weights."""

    def __init__(self, folder: Path, cluster: Cluster, stack: AsyncExitStack) -> None:
        self._folder, self._cluster, self._stack = folder, cluster, stack
        self.sources = folder / "adapters"
        self._base = tiny_base(folder / "base")

    async def start(self) -> "Site":
        settings = RouterSettings(heartbeat_seconds=0.05, allowed_sources=(f"dir:{self.sources}",))
        router = RouterRole(settings, listen="127.0.0.1:0")
        self._stack.push_async_callback(router.aclose)
        await router.start()
        self._router_address = f"127.0.0.1:{router.port}"
        channel = await self._stack.enter_async_context(open_channel(self._router_address))
        self._stub = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]  # generated
        await self.start_worker()
        return self

    async def start_worker(self) -> None:
        self._cluster.registry = CollectorRegistry()
        self.worker, self.channel = await self._cluster.worker(
            lora=LORA, routers=(self._router_address,), open_adapters=self._open_cache
        )
        assert self.worker._membership is not None
        await self.worker._membership.registered.wait()

    def _open_cache(self, shape: LoraShape) -> AdapterCache:
        plain = {"kind": "LLMServe", "models": {"primary": {"source": "hub:o/n"}}}
        lora = Lora.model_validate({"allowed_sources": [f"dir:{self.sources}"]})
        manifest = Manifest.model_validate(plain).model_copy(update={"lora": lora})
        return open_adapter_cache(manifest, shape, self._base)

    def write(self, folder: str, seed: int) -> None:
        random_adapter(self.sources / folder, self._base, seed=seed)

    async def load(self, name: str, folder: str = "", **more: Any) -> router_pb2.AdapterStatus:
        source = f"dir:{self.sources}/{folder or name}"
        request = router_pb2.LoadAdapterRequest(name=name, source=source, **more)
        return await self._call(self._stub.LoadAdapter, request)

    async def unload(self, name: str) -> router_pb2.AdapterStatus:
        request = router_pb2.UnloadAdapterRequest(name=name, wait=True)
        return await self._call(self._stub.UnloadAdapter, request)

    async def keep(self, name: str, tier: AdapterTier) -> router_pb2.AdapterStatus:
        request = router_pb2.KeepAdapterRequest(name=name, tier=encode_tier(tier), pin=True, wait=True)
        return await self._call(self._stub.KeepAdapter, request)

    async def _call(self, method: Any, request: Any) -> router_pb2.AdapterStatus:
        try:
            status: router_pb2.AdapterStatus = (await method(request, timeout=CALL_SECONDS)).adapter
            return status
        except grpc.aio.AioRpcError as error:
            raise from_grpc(error) from error

    async def answer(self, stream: Stream, name: str, digest: str) -> list[int]:
        await stream.generate(name, adapter=digest)
        assert (await stream.last(name)).finish_reason is FinishReason.LENGTH
        return stream.tokens(name)

    def files(self) -> set[str]:
        """Versions on disk and in memory."""
        folders = (self._folder / "disk", self._folder / "memory")
        return {path.name for folder in folders for path in folder.glob("*") if len(path.name) == 64}


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setenv("LLMSERVE_ADAPTER_DISK", str(tmp_path / "disk"))
    monkeypatch.setenv("LLMSERVE_ADAPTER_DRAM", str(tmp_path / "memory"))
    monkeypatch.setattr(lifecycle, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(orders, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(orders, "KEEP_SECONDS", 0.2)
    async with AsyncExitStack() as stack:
        made = Site(tmp_path, Cluster(stack), stack)
        for seed, folder in enumerate(("one", "two", "three")):
            made.write(folder, seed)
        yield await made.start()


async def test_a_loaded_name_is_usable_and_an_unloaded_one_leaves_nothing(site: Site) -> None:
    status = await site.load("mine", "one")
    assert (status.state, status.adapter.rank) == ("ready", 8)
    digest = status.adapter.digest
    assert site.files() == {digest}
    stream = Stream(site.channel)
    base, adapted = await site.answer(stream, "base", ""), await site.answer(stream, "r", digest)
    assert base != adapted
    assert (await site.unload("mine")).state == "gone"
    async with asyncio.timeout(CALL_SECONDS):
        while site.files():  # noqa: ASYNC110 - another process's state, as far as the test knows
            await asyncio.sleep(0.01)
    await stream.generate("s", adapter=digest)
    assert (await stream.last("s")).error == f"AdapterUnavailable: this worker does not hold adapter {digest}"


async def test_more_versions_than_slots(site: Site) -> None:
    loaded = await asyncio.gather(*(site.load(name) for name in ("one", "two", "three")))
    digests = [status.adapter.digest for status in loaded]
    streams = [Stream(site.channel) for _ in digests]
    runs = [
        await asyncio.gather(
            *(
                site.answer(stream, f"{run}-{digest}", digest)
                for stream, digest in zip(streams, digests, strict=True)
            )
        )
        for run in range(2)
    ]
    assert runs[0] == runs[1]
    assert len({tuple(answer) for answer in runs[0]}) == 3


async def test_other_weights_under_a_name_are_another_version(site: Site) -> None:
    old = (await site.load("mine", "one")).adapter.digest
    stream = Stream(site.channel)
    await stream.generate("r", adapter=old, max_tokens=600)
    await stream.first("r")
    site.write("one", seed=9)
    new = (await site.load("mine", "one")).adapter.digest
    assert new != old
    await site.answer(stream, "s", new)
    assert (await stream.last("r")).finish_reason is FinishReason.LENGTH
    assert len(stream.tokens("r")) == 600


async def test_what_is_kept_on_the_device_is_there(site: Site) -> None:
    digest = (await site.load("mine", "one")).adapter.digest
    status = await site.keep("mine", AdapterTier.DEVICE)
    assert decode_adapter_report(status.places[0].report).tier is AdapterTier.DEVICE
    stream = Stream(site.channel)
    await stream.generate("r", adapter=digest)
    load = (await stream.first("r")).adapter_load
    assert load is not None
    assert load.tier is AdapterTier.DEVICE


async def test_a_wrong_adapter_is_refused_with_its_reason_and_a_right_one_replaces_it(site: Site) -> None:
    (site.sources / "one" / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InvalidRequest, match=r"adapter_model\.safetensors"):
        await site.load("mine", "one")
    site.write("one", seed=1)
    assert (await site.load("mine", "one")).state == "ready"


async def test_a_worker_that_starts_again_holds_them_without_their_source(site: Site) -> None:
    digest = (await site.load("mine", "one")).adapter.digest
    await site.worker.aclose()
    (site.sources / "one" / "adapter_model.safetensors").unlink()
    await site.start_worker()
    async with asyncio.timeout(CALL_SECONDS):
        while True:
            stream = Stream(site.channel)
            await stream.generate("r", adapter=digest)
            last = await stream.last("r")
            if not last.error.startswith("AdapterUnavailable"):
                break
            await asyncio.sleep(0.02)
    assert last.finish_reason is FinishReason.LENGTH
