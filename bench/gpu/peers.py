"""Steps with two processes on one GPU: NIXL beside its bare agent, dying peers, and the refusal of NCCL."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.gpu.ends import DeviceEnd, PeerProcess, batch, memory_type, pair
from bench.gpu.steps import MIB, StepReport, StepSetting, in_turns
from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, Memory, PeerName
from llmserve.transfer.devices.cuda import CudaCopies
from llmserve.transfer.nixl import NixlTransport

_GIB = 1 << 30
_PIECES = 16_384
_LEAST_OF_BARE = 0.8
_DEATH_SECONDS = 5.0


def nixl(setting: StepSetting, report: StepReport) -> None:
    """Between two devices; the many pieces beside a bare agent; then from a device to host memory."""
    size = setting.size(2 * _GIB, 16 * MIB)
    with pair(setting, "nixl", size) as (near, far, peer):
        report.figure("memory", str(near.region.memory))
        far.ask("fill", 7)
        near.must_move("read", peer, batch(MIB))
        report.expect("the bytes of the peer arrive", near.count(7, MIB) == MIB)
        _single_pieces(setting, near, peer, report)
        _many_pieces(setting, near, far, peer, report)
    with pair(setting, "nixl", size, near_on_host=True) as (near, _, peer):
        _speeds(near, peer, batch(size // 2), "device to host memory", setting.repeats(3), report)
    if not setting.fake:
        for gib in (8, 64):
            report.figure(f"registering {gib} GiB s", _registering_seconds(setting, gib * _GIB))


def nixl_speed(setting: StepSetting, report: StepReport) -> None:
    """The speed alone, for other settings of UCX."""
    setting.needs_cuda("these settings of UCX are about memory of GPUs")
    size = setting.size(_GIB, 8 * MIB)
    with pair(setting, "nixl", size) as (near, _, peer):
        _speeds(near, peer, batch(size), f"{size >> 20} MiB", setting.repeats(3), report)


def _single_pieces(setting: StepSetting, near: DeviceEnd, peer: PeerName, report: StepReport) -> None:
    sizes = (4 << 10, 64 << 10, MIB, 16 * MIB, 256 * MIB, _GIB)
    for size in sizes:
        if size <= near.region.length_bytes // 2:
            _speeds(near, peer, batch(size), f"{size >> 10} KiB", setting.repeats(5), report)


def _speeds(
    near: DeviceEnd, peer: PeerName, moved: Batch, name: str, repeats: int, report: StepReport
) -> None:
    for operation in ("read", "write"):
        near.must_move(operation, peer, moved)
        rates = []
        for _ in range(repeats):
            started = time.perf_counter()
            near.must_move(operation, peer, moved)
            rates.append(moved.local.total_bytes / (time.perf_counter() - started) / 1e9)
        report.figure(f"{operation} GB/s of {name}", max(rates))


def _many_pieces(
    setting: StepSetting, near: DeviceEnd, far: PeerProcess, peer: PeerName, report: StepReport
) -> None:
    count = 64 if setting.fake else _PIECES
    moved = batch(64 << 10, count, near.region.length_bytes)
    bare = _bare_reads(near, far, moved)
    rates = in_turns(
        lambda: near.must_move("read", peer, moved), bare, moved.local.total_bytes, setting.repeats(5)
    )
    least = 0.0 if setting.fake else _LEAST_OF_BARE
    report.goal(f"{count} pieces of 64 KiB beside a bare agent", *rates, least=least)


def _bare_reads(near: DeviceEnd, far: PeerProcess, moved: Batch) -> Callable[[], None]:
    """Descriptors, one request, poll to its end: what every user of NIXL has to do for one transfer."""
    name, metadata, address = far.ask("bare_metadata")
    agent, kind = near.bare_agent(), memory_type(near.region)
    agent.add_remote_agent(metadata)
    agent.make_connection(name)
    device = near.region.memory.device or 0

    def rows(start: int, offsets: Any) -> Any:
        table = np.zeros((len(offsets), 3), np.uint64)
        table[:, 0], table[:, 1], table[:, 2] = start + offsets, moved.local.lengths, device
        return agent.get_xfer_descs(table, kind)

    def read() -> None:
        local, remote = rows(near.region.address, moved.local.offsets), rows(address, moved.remote.offsets)
        handle = agent.initialize_xfer("READ", local, remote, name)
        state = agent.transfer(handle)
        while state == "PROC":
            state = agent.check_xfer_state(handle)
        agent.release_xfer_handle(handle)
        if state != "DONE":
            raise TransferError(f"the bare agent says {state}")

    return read


def _registering_seconds(setting: StepSetting, size: int) -> float:
    copies = setting.copies()
    transport = NixlTransport(copies)
    region = copies.allocate(size)
    started = time.perf_counter()
    transport.register([region])
    seconds = time.perf_counter() - started
    transport.close()
    copies.close()
    return seconds


class _NoDeviceSet:
    """Copies of a GPU that do not make it the current device of a thread. The control of `enter`."""

    def __init__(self, copies: CudaCopies) -> None:
        self.memory: Memory = copies.memory
        self.allocate = copies.allocate

    def enter(self) -> None:
        """Does nothing, which is wrong."""


def nixl_without_device(setting: StepSetting, report: StepReport) -> None:
    """What NIXL does in a thread without a current CUDA device: it refuses, or goes another way."""
    setting.needs_cuda("a thread without a CUDA device needs CUDA")
    said: list[str] = []

    def try_it() -> None:
        copies: Any = _NoDeviceSet(CudaCopies(0))
        region = copies.allocate(MIB)
        try:
            NixlTransport(copies).register([region])
            said.append("it registered the memory of the GPU")
        except TransferError as error:
            said.append(error.message)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    report.figure("in a thread without a device", said[0] if said else "the thread failed")


def deaths(setting: StepSetting, report: StepReport) -> None:
    """The owner of memory is killed during a read, a reader during a write, and both survivors go on with
    another peer. Then an owner registers its memory anew while a peer writes."""
    for kind in ("tcp",) if setting.fake else ("nixl", "tcp"):
        size = setting.size(_GIB, 16 * MIB)
        near = DeviceEnd(setting, kind, size)
        try:
            for turn in range(setting.repeats(3)):
                said = _killed_during_read(setting, kind, near, size, 0.001 * turn)
                report.figure(f"{kind}: read {turn} from an owner that is killed", said)
            survivor = PeerProcess(setting, kind, size)
            report.figure(f"{kind}: writer killed", _writer_killed(setting, kind, survivor, size))
            survivor.ask("fill", 3)
            near.must_move("read", near.connect(survivor.description), batch(MIB))
            report.expect(f"{kind}: other peers do not suffer", near.count(3, MIB) == MIB)
            _registered_anew(kind, near, survivor, size, report)
            survivor.close()
        finally:
            near.transport.close()
            near.copies.close()


def _killed_during_read(
    setting: StepSetting, kind: str, near: DeviceEnd, size: int, after_seconds: float
) -> str:
    owner = PeerProcess(setting, kind, size)
    peer = near.connect(owner.description)
    killer = threading.Timer(after_seconds, owner.kill)
    killer.start()
    try:
        return near.move("read", peer, batch(size), _DEATH_SECONDS) or "done"
    finally:
        killer.join()
        owner.close()
        near.transport.disconnect(peer)


def _writer_killed(setting: StepSetting, kind: str, owner: PeerProcess, size: int) -> str:
    """Returns whether the owner of the memory still answers."""
    writer = PeerProcess(setting, kind, size)
    peer = writer.ask("connect", owner.description)
    writer.tell("move", "write", peer, batch(size))
    writer.kill()
    writer.close()
    owner.ask("count", 0, MIB)
    return "the owner of the memory lives"


def _registered_anew(kind: str, near: DeviceEnd, far: PeerProcess, size: int, report: StepReport) -> None:
    """Does a write still land through the old description? If so, whoever fences must wait for the writer."""
    far.ask("fill", 1)
    near.fill(9)
    peer = near.connect(far.description)
    far.ask("register_anew")
    said = near.move("write", peer, batch(size))
    report.figure(f"{kind}: a write after the memory was registered anew", said or "done")
    report.figure(f"{kind}: bytes of it that landed", far.ask("count", 9))


def nccl(setting: StepSetting, report: StepReport) -> None:
    """Two ranks on one GPU, which NCCL refuses: the words are those that the doctor has to explain."""
    setting.needs_cuda("NCCL needs CUDA; without it this transport is gloo")
    try:
        with pair(setting, "nccl", MIB) as (near, _, peer):
            report.figure("two ranks on one GPU", near.move("read", peer, batch(MIB)) or "done")
    except TransferError as error:
        report.figure("two ranks on one GPU", error.message)
