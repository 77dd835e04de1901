"""Steps: bytes that pass through pinned memory. The staging between a device and a socket, and the arena of
the DRAM tier, registered with CUDA."""

import hashlib
import multiprocessing
import os
import time
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import xxhash

from bench.gpu.ends import batch, pair, spans
from bench.gpu.steps import MIB, StepReport, StepSetting, best_rate, in_turns, whole
from llmserve.kvstore.dram.mapping import Mapping
from llmserve.kvstore.dram.shape import ArenaShape
from llmserve.transfer.base import Region
from llmserve.transfer.devices import Bytes, Copies, RegionCopies, Staging
from llmserve.transfer.devices.staging import SLOT_BYTES
from llmserve.transfer.spans import split

_GIB = 1 << 30
_LEAST_OF_FLOOR = 0.9


def staging(setting: StepSetting, report: StepReport) -> None:
    """`Staging` beside the same copies without it, with 2 to 8 slots; with a digest of each slot; then tcp
    between two processes. The slots' size is a constant of the wire's rules, so it is not varied."""
    size = setting.size(_GIB, 64 * MIB)
    copies = setting.copies()
    try:
        memory, region = _memory(copies, size)
        for slots in (2, 4, 8):
            _staging_speed(setting, Staging(copies, slots), copies, memory, region, slots, report)
        chunk = spans(size, [0])
        digest = xxhash.xxh3_64()
        ours = Staging(copies)
        rate = best_rate(
            lambda: ours.outgoing(memory, chunk, lambda packed: digest.update(packed.data)),
            size,
            setting.repeats(3),
        )
        report.figure("outgoing GB/s with a digest of each slot", rate)
    finally:
        copies.close()
    with pair(setting, "tcp", setting.size(_GIB, 16 * MIB)) as (near, _, peer):
        moved = batch(near.region.length_bytes)
        for operation in ("read", "write"):
            rate = best_rate(
                partial(near.must_move, operation, peer, moved),
                moved.local.total_bytes,
                setting.repeats(3),
            )
            report.figure(f"tcp {operation} GB/s between two processes", rate)


def _memory(copies: Copies, size: int) -> tuple[RegionCopies, Region]:
    region = copies.allocate(size)
    return RegionCopies([region], copies), region


def _staging_speed(
    setting: StepSetting,
    ours: Staging,
    copies: Copies,
    memory: RegionCopies,
    region: Region,
    slots: int,
    report: StepReport,
) -> None:
    """The floor starts all copies at once into two slots and waits for the last one. Nobody looks at the
    bytes in either."""
    size = region.length_bytes
    chunk = spans(size, [0])
    pinned = [copies.pinned(SLOT_BYTES) for _ in range(2)]
    moves: dict[str, tuple[Any, Any]] = {
        "outgoing": (ours.outgoing, memory.gather),
        "incoming": (ours.incoming, memory.scatter),
    }
    for direction, (staged, copy) in moves.items():

        def bare(copy: Any = copy) -> None:
            marks = [copy(part, pinned[at % 2]) for at, part in enumerate(split(chunk, SLOT_BYTES))]
            marks[-1].wait()

        rates = in_turns(
            partial(staged, memory, chunk, _ignored),
            bare,
            size,
            setting.repeats(5),
        )
        name = f"{direction} with {slots} slots"
        if slots == 4 and not setting.fake:
            report.goal(name, *rates, least=_LEAST_OF_FLOOR)
        else:
            report.figure(f"{name}: GB/s, and without staging", [round(rate, 2) for rate in rates])


def _ignored(_: Bytes) -> None:
    """Is the network that does nothing."""


def arena(setting: StepSetting, report: StepReport) -> None:
    """The arena of the DRAM tier. It is registered with CUDA, and mapped by a second process, which outlives
    its owner."""
    size = setting.size(8 * _GIB, 32 * MIB)
    fd = os.memfd_create("bench-arena", os.MFD_CLOEXEC)
    shape = ArenaShape(size)
    os.ftruncate(fd, shape.total_bytes)
    mapping = Mapping(fd, shape)
    report.figure("populate s per GiB", _timed(mapping.populate) * _GIB / size)
    _register(setting, mapping, report)
    _outlives_its_owner(setting, fd, shape, mapping, report)
    os.close(fd)


def _timed(action: Any) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _register(setting: StepSetting, mapping: Mapping, report: StepReport) -> None:
    """The speed of copies before and after, and the cost of registering and unregistering."""
    if setting.fake:
        report.figure("registering", "skipped: cudaHostRegister needs CUDA")
        return
    import torch

    copies = setting.copies()
    region, size = copies.allocate(256 * MIB), 256 * MIB
    starts, lengths = whole(region)
    slot = mapping.data[:size]
    moved = best_rate(lambda: copies.gather(starts, lengths, slot).wait(), size, 3)
    report.figure("D2H GB/s before registering", moved)
    runtime = torch.cuda.cudart()
    address, total = mapping.region.address, mapping.region.length_bytes
    started = time.perf_counter()
    code = int(runtime.cudaHostRegister(address, total, 0))
    seconds = time.perf_counter() - started
    if code:
        report.figure("registering", f"cudaHostRegister refuses with error {code}")
        return
    report.figure("registering s per GiB", seconds * _GIB / total)
    moved = best_rate(lambda: copies.gather(starts, lengths, slot).wait(), size, 3)
    report.figure("D2H GB/s after registering", moved)
    report.figure("unregistering s", _timed(lambda: runtime.cudaHostUnregister(address)))


def _outlives_its_owner(
    setting: StepSetting, fd: int, shape: ArenaShape, mapping: Mapping, report: StepReport
) -> None:
    """This process plays the owner that closes; the second process reads on."""
    mapping.data[:MIB] = 5
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    path = f"/proc/{os.getpid()}/fd/{fd}"
    user = context.Process(target=_use, args=(theirs, path, shape, setting), daemon=True)
    user.start()
    theirs.close()
    first = pipe.recv()
    mapping.close()
    pipe.send("closed")
    second = pipe.recv()
    user.join(5.0)
    expected = hashlib.sha256(bytes([5]) * MIB).hexdigest()
    report.figure("a second process", first[1])
    report.expect("a second process sees the arena", first[0] == expected)
    report.expect("it sees it when the owner has closed", second[0] == expected)


def _use(pipe: Connection, path: str, shape: ArenaShape, setting: StepSetting) -> None:
    fd = os.open(path, os.O_RDWR)
    mapping = Mapping(fd, shape)
    said = "skipped: cudaHostRegister needs CUDA" if setting.fake else _registered(setting, mapping)
    for _ in range(2):
        pipe.send((hashlib.sha256(mapping.data[:MIB].tobytes()).hexdigest(), said))
        if pipe.poll(20.0):
            pipe.recv()


def _registered(setting: StepSetting, mapping: Mapping) -> str:
    import torch

    setting.copies()
    region = mapping.region
    code = int(torch.cuda.cudart().cudaHostRegister(region.address, region.length_bytes, 0))
    return f"cudaHostRegister refuses with error {code}" if code else "it registers its own mapping"
