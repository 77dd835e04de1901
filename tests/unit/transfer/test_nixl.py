"""How NIXL's absence is told, how a process ends that has used it, and what it is told of GPUs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import (
    HOST,
    Batch,
    Memory,
    PeerName,
    Region,
    Spans,
    Transfer,
    TransferState,
    TransferStatus,
)
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.nixl import NixlTransport


def test_a_machine_without_nixl_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    with pytest.raises(TransportUnavailable, match="cannot be imported"):
        NixlTransport()


class FakeApi(ModuleType):
    """The two names that are used of nixl._api, with an agent that lacks UCX or does not start."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__("nixl._api")
        self._error = error

    def nixl_agent_config(self, **options: Any) -> dict[str, Any]:
        assert options["enable_prog_thread"] is False, "that thread spins on a core"
        return options

    def nixl_agent(self, name: str, config: dict[str, Any]) -> Any:
        if self._error:
            raise self._error
        agent = ModuleType(name)
        agent.__dict__["backends"] = {}
        return agent


@pytest.mark.parametrize(
    ("error", "reason"), [(None, "no UCX backend"), (RuntimeError("no plugins"), "RuntimeError: no plugins")]
)
def test_a_nixl_that_does_not_work_is_told_so(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, reason: str
) -> None:
    api = FakeApi(error)
    package = ModuleType("nixl")
    package.__dict__["_api"] = api
    monkeypatch.setitem(sys.modules, "nixl", package)
    monkeypatch.setitem(sys.modules, "nixl._api", api)
    with pytest.raises(TransportUnavailable, match=reason):
        NixlTransport()


def test_a_process_that_used_nixl_ends_in_order() -> None:
    """Where the system has RDMA libraries, a process of NIXL's ends with a segmentation fault."""
    pytest.importorskip("nixl")
    script = "from llmserve.transfer.nixl import NixlTransport; NixlTransport().close()"
    free = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
    ended = subprocess.run([sys.executable, "-c", script], env=free, timeout=50, check=False)
    assert ended.returncode == 0


# -- memory of GPUs, on an agent that moves nothing


class WatchedDevice(FakeDevice):
    """Counts how often a thread has made it the current device."""

    entered = 0

    def enter(self) -> None:
        self.entered += 1


@dataclass(eq=False)
class FakeHandle:
    """types: of the local and of the remote descriptors."""

    operation: str
    types: tuple[str, str]
    local: list[list[int]]
    remote: list[list[int]]
    state: str = "PROC"
    released: bool = False


@dataclass(eq=False)
class FakeAgent:
    device: WatchedDevice
    backends: dict[str, Any] = field(default_factory=lambda: {"UCX": None})
    registered: list[tuple[list[Any], str]] = field(default_factory=list)
    handles: list[FakeHandle] = field(default_factory=list)
    refuses: str = ""  # a type of memory that it does not register
    fails_at: int = -1  # the transfer that it does not start

    def register_memory(self, rows: list[Any], kind: str) -> None:
        assert self.device.entered, "the device is not the current one"
        if kind == self.refuses:
            raise RuntimeError("UCX sees host memory")
        self.registered.append((rows, kind))

    def get_agent_metadata(self) -> bytes:
        return b"metadata"

    def add_remote_agent(self, metadata: bytes) -> str:
        assert metadata == b"metadata"
        return "peer"

    def make_connection(self, name: str) -> None:
        assert self.device.entered > 1, "the device is not the current one of this thread"

    def get_xfer_descs(self, rows: Any, kind: str) -> tuple[Any, str]:
        return rows.tolist(), kind

    def initialize_xfer(self, operation: str, local: Any, remote: Any, name: str) -> FakeHandle:
        assert name == "peer"
        return FakeHandle(operation, (local[1], remote[1]), local[0], remote[0])

    def transfer(self, handle: FakeHandle) -> None:
        if len(self.handles) == self.fails_at:
            raise RuntimeError("no path")
        self.handles.append(handle)

    def check_xfer_state(self, handle: FakeHandle) -> str:
        assert not handle.released
        return handle.state

    def release_xfer_handle(self, handle: FakeHandle) -> None:
        assert not handle.released
        handle.released = True

    def remove_remote_agent(self, name: str) -> None: ...


GPU = Memory(1)
MIXED = [Region(1000, 100, GPU), Region(2000, 100), Region(3000, 100, GPU)]


class VirtualTime:
    """Stands for the module `time`. at: what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at: dict[float, Callable[[], None]] = {}

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in [moment for moment in self.at if moment <= self.now]:
            self.at.pop(moment)()


class GpuKit:
    """A transport with two regions of GPU 1 and one of the host, connected to a peer with the like."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = WatchedDevice(1)
        self.agent = FakeAgent(self.device)
        api = SimpleNamespace(nixl_agent_config=lambda **_: None, nixl_agent=lambda name, config: self.agent)
        monkeypatch.setattr("llmserve.transfer.nixl._load", lambda: api)
        self.time = VirtualTime()
        monkeypatch.setattr("llmserve.transfer.nixl.time", self.time)
        self.transport = NixlTransport(self.device)

    def connect(self, regions: list[Region] = MIXED, **fields: Any) -> PeerName:
        self.transport.register(regions)
        description = {**json.loads(self.transport.describe()), **fields}
        return self.transport.connect(json.dumps(description).encode())

    def read(self, peer: PeerName, local: list[int], remote: list[int]) -> Transfer:
        """Ten bytes from each region to each."""
        offsets, lengths = np.arange(len(local)) * 20, np.full(len(local), 10)
        batch = Batch(Spans(np.array(local), offsets, lengths), Spans(np.array(remote), offsets, lengths))
        return self.transport.read(peer, batch)


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch) -> GpuKit:
    return GpuKit(monkeypatch)


def test_each_memory_is_registered_with_its_type_and_ordinal(kit: GpuKit) -> None:
    kit.connect()
    assert kit.agent.registered == [
        ([(1000, 100, 1, ""), (3000, 100, 1, "")], "VRAM"),
        ([(2000, 100, 0, "")], "DRAM"),
    ]
    assert json.loads(kit.transport.describe())["devices"] == [1, -1, 1]


def test_the_host_alone_is_described_as_before_there_were_gpus(kit: GpuKit) -> None:
    kit.transport.register([Region(2000, 100)])
    assert "devices" not in json.loads(kit.transport.describe())


def test_a_gpu_whose_memory_is_refused_is_named(kit: GpuKit) -> None:
    kit.agent.refuses = "VRAM"
    with pytest.raises(
        TransferError, match="nixl: register memory of GPU 1: RuntimeError: UCX sees host mem"
    ):
        kit.transport.register(MIXED)


def test_the_device_is_the_current_one_before_a_path_is_set_up(kit: GpuKit) -> None:
    """The agent looks at it when memory is registered and when peers are connected."""
    peer = kit.connect()
    before = kit.device.entered
    kit.read(peer, [0], [0])
    assert kit.device.entered > before


def test_a_transfer_has_one_part_for_each_pair_of_types(kit: GpuKit) -> None:
    peer = kit.connect()
    transfer = kit.read(peer, [0, 1, 2, 1, 0], [1, 0, 2, 1, 0])
    found = [(one.types, one.local, one.remote) for one in kit.agent.handles]
    assert found == [
        (("DRAM", "DRAM"), [[2060, 10, 0]], [[2060, 10, 0]]),
        (("DRAM", "VRAM"), [[2020, 10, 0]], [[1020, 10, 1]]),
        (("VRAM", "DRAM"), [[1000, 10, 1]], [[2000, 10, 0]]),
        (("VRAM", "VRAM"), [[3040, 10, 1], [1080, 10, 1]], [[3040, 10, 1], [1080, 10, 1]]),
    ]
    for handle in kit.agent.handles:
        assert kit.transport.poll(transfer).state is TransferState.RUNNING
        handle.state = "DONE"
    assert kit.transport.poll(transfer) == TransferStatus(TransferState.DONE)
    assert all(handle.released for handle in kit.agent.handles)


def test_a_failed_part_fails_the_transfer_when_the_others_have_ended(kit: GpuKit) -> None:
    """Until then its memory is in use."""
    peer = kit.connect()
    transfer = kit.read(peer, [0, 1], [0, 1])
    first, second = kit.agent.handles
    first.state = "ERR"
    assert kit.transport.poll(transfer).state is TransferState.RUNNING
    second.state = "DONE"
    assert kit.transport.poll(transfer) == TransferStatus(TransferState.FAILED, "nixl: the transfer failed")


def test_a_part_that_does_not_start_fails_the_transfer(kit: GpuKit) -> None:
    peer = kit.connect()
    kit.agent.fails_at = 1
    transfer = kit.read(peer, [0, 1], [0, 1])
    assert kit.transport.poll(transfer).state is TransferState.RUNNING
    kit.agent.handles[0].state = "DONE"
    assert kit.transport.poll(transfer).reason == "nixl: READ: RuntimeError: no path"
    kit.agent.fails_at = 1
    with pytest.raises(TransferError, match="no path"):
        kit.read(peer, [0], [0])


def _end(kit: GpuKit) -> None:
    for handle in kit.agent.handles:
        handle.state = "DONE"


@pytest.mark.parametrize("leave", ["close", "register"])
def test_an_end_leaves_after_its_transfers(kit: GpuKit, leave: str) -> None:
    """The owner of what is read may abort when the reader leaves in the middle."""
    transfer = kit.read(kit.connect(), [0, 1], [0, 1])
    kit.time.at[3.0] = lambda: _end(kit)
    kit.transport.close() if leave == "close" else kit.transport.register(MIXED)
    assert kit.time.now == pytest.approx(3.0, abs=0.01)
    assert kit.transport.poll(transfer).state is TransferState.DONE


def test_a_transfer_that_does_not_end_keeps_no_end_for_long(kit: GpuKit) -> None:
    transfer = kit.read(kit.connect(), [0, 1], [0, 1])
    kit.transport.close()
    assert kit.time.now == pytest.approx(5.0, abs=0.01)
    assert all(handle.released for handle in kit.agent.handles)
    assert kit.transport.poll(transfer).state is TransferState.FAILED


@pytest.mark.parametrize("devices", [[1], [1, -2, 1], "x", ["a", 0, 0], [1 << 70] * 3])
def test_wrong_devices_of_a_peer_are_refused(kit: GpuKit, devices: Any) -> None:
    with pytest.raises(TransferError, match="malformed description"):
        kit.connect(devices=devices)


def test_only_its_own_gpu_is_reached(kit: GpuKit) -> None:
    assert [kit.transport.reaches(memory) for memory in (HOST, GPU, Memory(0))] == [True, True, False]
    with pytest.raises(TransferError, match="nixl: does not reach memory of GPU 0"):
        kit.transport.register([Region(1000, 100, Memory(0))])
