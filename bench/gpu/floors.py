"""Steps: what the machine is, how fast bare copies are, and which way of copying pieces is the fastest."""

import ctypes
import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.gpu.steps import (
    MIB,
    StepReport,
    StepSetting,
    best_rate,
    device_tensor,
    in_turns,
    scattered,
    whole,
)
from llmserve.core.errors import TransferError
from llmserve.transfer.base import Int64Array, Region
from llmserve.transfer.devices import Copies, Mark
from llmserve.transfer.devices.cuda import CudaDriver

_PIECES = 16_384
_TOOL_SECONDS = 10
_ASKED = (
    ("gpus", ("nvidia-smi", "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader")),
    ("topology", ("nvidia-smi", "topo", "-m")),
)


def machine(setting: StepSetting, report: StepReport) -> None:
    """What the other figures were measured on."""
    names = os.uname()
    report.figure("kernel", f"{names.sysname} {names.release} {names.machine}")
    report.figure("python", platform.python_version())
    report.figure("cores", len(os.sched_getaffinity(0)))
    report.figure("locked memory limit", resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])
    report.figure("pid namespace", os.readlink("/proc/self/ns/pid"))
    with suppress(OSError):
        modes = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip()
        report.figure("huge pages", modes)
    for name, command in _ASKED:
        report.figure(name, _said(command))
    with suppress(ImportError):
        import torch

        report.figure("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")


def _said(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout or done.stderr).strip()


def floors(setting: StepSetting, report: StepReport) -> None:
    """GB/s of one copy of 64 KiB to 64 MiB each way, both ways at once, and within the device."""
    copies = setting.copies()
    try:
        for size in (64 << 10, MIB, 16 * MIB, 64 * MIB):
            _measure_copies(copies, size, setting.repeats(20), report)
    finally:
        copies.close()
    if not setting.fake:
        copies = setting.copies()
        report.figure("device to device GB/s, read and written", hbm_rate(copies, 1 << 30))
        _pageable(report)


def _measure_copies(copies: Copies, size: int, repeats: int, report: StepReport) -> None:
    region, out, back = copies.allocate(size), copies.pinned(size), copies.pinned(size)
    starts, lengths = whole(region)

    def both() -> None:
        marks = copies.gather(starts, lengths, out), copies.scatter(starts, lengths, back)
        for mark in marks:
            mark.wait()

    name = f"{size >> 10} KiB"
    moves = {"D2H": copies.gather, "H2D": copies.scatter}
    for direction, move in moves.items():
        rate = best_rate(partial(_ended, move, starts, lengths, out), size, repeats)
        report.figure(f"{direction} GB/s of {name}", rate)
    report.figure(f"both ways at once GB/s of {name}", best_rate(both, 2 * size, repeats))


def _ended(copy: Callable[..., Mark], *places: Any) -> None:
    copy(*places).wait()


def hbm_rate(copies: Copies, size: int) -> float:
    """Returns the GB/s of a copy within the device, counting bytes that are read and written."""
    import torch

    source, target = (device_tensor(copies.allocate(size)) for _ in range(2))

    def move() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return best_rate(move, 2 * size, 5)


def _pageable(report: StepReport) -> None:
    import torch

    size = 64 * MIB
    host = torch.empty(size, dtype=torch.uint8)
    device = torch.empty(size, dtype=torch.uint8, device="cuda")
    report.figure("D2H GB/s of 64 MiB, pageable", best_rate(lambda: host.copy_(device), size, 5))
    report.figure("H2D GB/s of 64 MiB, pageable", best_rate(lambda: _copied(device, host), size, 5))


def _copied(target: Any, source: Any) -> None:
    import torch

    target.copy_(source)
    torch.cuda.synchronize()


def pieces(setting: StepSetting, report: StepReport) -> None:
    """Pieces of 64, 16 and 2 KiB by each way of copying them, beside one copy of as many bytes."""
    count = 256 if setting.fake else _PIECES
    for piece_bytes in (64 << 10, 16 << 10, 2 << 10):
        copies = setting.copies()
        try:
            _measure_pieces(setting, copies, piece_bytes, count, report)
        finally:
            copies.close()


def _measure_pieces(
    setting: StepSetting, copies: Copies, piece_bytes: int, count: int, report: StepReport
) -> None:
    total, name, repeats = piece_bytes * count, f"{piece_bytes >> 10} KiB", setting.repeats(5)
    region, packed = copies.allocate(2 * total), copies.pinned(total)
    starts, lengths = scattered(region, piece_bytes, count)
    floor = Region(region.address, total, region.memory)
    for direction, copy in (("gather", copies.gather), ("scatter", copies.scatter)):
        ours, one = in_turns(
            partial(_ended, copy, starts, lengths, packed),
            partial(_ended, copy, *whole(floor), packed),
            total,
            repeats,
        )
        report.figure(f"{direction} of {name}: GB/s, and of one copy", [round(ours, 2), round(one, 2)])
    if setting.fake:
        return
    packed_at = packed.ctypes.data + np.arange(count, dtype=np.int64) * piece_bytes
    for way, move in _ways(starts, packed_at, lengths, region, piece_bytes).items():
        try:
            report.figure(f"{way} of {name} GB/s", best_rate(move, total, 3))
        except (TransferError, RuntimeError, AttributeError) as error:
            report.figure(f"{way} of {name} GB/s", f"failed: {error}")
    _measure_kernel(copies, region, piece_bytes, count, report)


def _ways(
    starts: Int64Array, packed_at: Int64Array, lengths: Int64Array, region: Region, piece_bytes: int
) -> dict[str, Callable[[], object]]:
    """Ways of copying pieces, among which `CudaCopies` chooses. Needs CUDA."""
    import torch

    stream = torch.cuda.Stream()
    driver = ctypes.CDLL("libcuda.so.1")
    older = SimpleNamespace(cuMemcpyAsync=driver.cuMemcpyAsync)  # the library as it was before CUDA 12.8
    rows = torch.from_numpy((starts - region.address) // piece_bytes).cuda()
    table = device_tensor(region).view(-1, piece_bytes)
    host = torch.empty(len(starts), piece_bytes, dtype=torch.uint8, pin_memory=True)

    def by(copier: CudaDriver) -> Callable[[], object]:
        def move() -> None:
            copier.copy(starts, packed_at, lengths, stream.cuda_stream)
            stream.synchronize()

        return move

    def by_index_select() -> None:
        host.copy_(table.index_select(0, rows))
        torch.cuda.synchronize()

    return {
        "memcpy one by one": by(CudaDriver(older)),
        "memcpy batch": by(CudaDriver(driver)),
        "kernel to pinned memory": lambda: _run_kernel(starts, packed_at, lengths),
        "index_select": by_index_select,
    }


def _run_kernel(sources: Int64Array, targets: Int64Array, lengths: Int64Array) -> None:
    import torch

    from llmserve.transfer.devices.kernels import copy_pieces

    table = torch.from_numpy(np.stack((sources, targets, lengths))).cuda()
    copy_pieces(table, int(lengths.max()), aligned=True)
    torch.cuda.synchronize()


def _measure_kernel(copies: Copies, region: Region, piece_bytes: int, count: int, report: StepReport) -> None:
    """The kernel within the device, beside a copy of as many bytes. The table is there before."""
    import torch

    from llmserve.transfer.devices.kernels import copy_pieces

    total = piece_bytes * count
    target = copies.allocate(total)
    starts, lengths = scattered(region, piece_bytes, count)
    targets = target.address + np.arange(count, dtype=np.int64) * piece_bytes
    table = torch.from_numpy(np.stack((starts, targets, lengths))).cuda()
    source, other = device_tensor(region)[:total], device_tensor(target)

    def ours() -> None:
        copy_pieces(table, piece_bytes, aligned=True)
        torch.cuda.synchronize()

    rates = in_turns(ours, lambda: _copied(other, source), 2 * total, 5)
    report.goal(f"kernel within the device, {piece_bytes >> 10} KiB", *rates, least=0.8)
