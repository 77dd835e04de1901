"""The worker side of an engine: made for the memory that its KV is in."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from llmserve.core.errors import ManifestError
from llmserve.core.ids import RequestId, WorkerId
from llmserve.engines.connector import worker_side
from llmserve.engines.connector.memory import kv_layout, packing_of
from llmserve.engines.connector.settings import ConnectorSettings
from llmserve.engines.connector.worker_side import WorkerSide, staging_of
from llmserve.engines.kv_transfer import HeadShard, KvLayout
from llmserve.transfer.base import HOST, Memory
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.engine.engine import SharedTransfers

BLOCKS, HEADS, TOKENS, CONTENT = 4, 1, 16, 8


class TensorElsewhere:
    """A view of a KV cache that says that it is on another device."""

    def __init__(self, device: str) -> None:
        self._real = torch.zeros(BLOCKS, HEADS, TOKENS, CONTENT, dtype=torch.bfloat16)
        self.device = torch.device(device)
        self.shape = self._real.shape

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def layout_on(device: str) -> KvLayout:
    return kv_layout(
        {"layer.0": TensorElsewhere(device)},
        BLOCKS,
        TOKENS,
        kv_dtype="bfloat16",
        axes="LBHNC",
        packing=packing_of("flash_attn", CONTENT, 2),
        shard=HeadShard(1, 1, 0),
        model="m",
    )


def test_regions_say_which_memory_the_kv_is_in() -> None:
    assert [region.memory for region in layout_on("cpu").regions] == [HOST]
    layout = layout_on("cuda:1")
    assert [region.memory for region in layout.regions] == [Memory(1)]
    assert layout.geometry.placements, "one registration for all layers"


def test_kv_in_unknown_memory_is_refused_by_its_name() -> None:
    with pytest.raises(ManifestError, match="KV in the memory of xpu:0 is not available yet"):
        layout_on("xpu:0")


def test_host_memory_is_not_staged() -> None:
    assert staging_of(layout_on("cpu").regions) is None


def test_the_memory_of_a_gpu_is_staged_by_its_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_side, "CudaCopies", lambda ordinal: SimpleNamespace(memory=Memory(ordinal)))
    staging = staging_of(layout_on("cuda:1").regions)
    assert staging is not None
    assert staging.copies.memory == Memory(1)


SETTINGS = ConnectorSettings(
    worker_id=WorkerId("w"),
    epoch=1,
    host="127.0.0.1",
    model="m",
    options="",
    engine_order=("tcp",),
    lease_seconds=30.0,
    card_path="",
    policy=TransferPolicy(),
    layerwise=True,
)


def test_beside_a_store_not_all_that_is_awaited_is_announced() -> None:
    side = WorkerSide(SETTINGS, layout_on("cpu"), shared := SharedTransfers())
    try:
        awaited = [side.awaits_change]
        side._node.server.grant(RequestId("r"), [0])
        awaited.append(side.awaits_change)
        shared.with_store = True
        awaited.append(side.awaits_change)
        assert awaited == [False, True, False]
    finally:
        side.close()


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    made = FakeDevice(ordinal=1, lateness_seconds=0.0)
    yield made
    made.close()


@pytest.mark.parametrize("on_device", [False, True])
def test_transports_are_those_that_reach_the_kv(device: FakeDevice, on_device: bool) -> None:
    layout, shared = layout_on("cpu"), SharedTransfers()
    if on_device:
        region = device.allocate(layout.regions[0].length_bytes)
        layout, shared = replace(layout, regions=(region,)), SharedTransfers(staging=Staging(device))
    side = WorkerSide(SETTINGS, layout, shared)
    try:
        assert side.endpoint().transports == (("tcp",) if on_device else ("shm", "tcp"))
        assert bool(device.copied_bytes) is on_device, "the pattern of the probe"
    finally:
        side.close()
