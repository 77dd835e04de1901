"""Step: CUDA's own handles of memory between processes, the base of a transport that there is not yet."""

import importlib
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

from bench.gpu.steps import MIB, StepReport, StepSetting

_SIZE = 256 * MIB
_TO_SAME_DEVICE, _LAZY_PEER_ACCESS = 3, 1
_SETTLE_SECONDS = 0.5


def ipc(setting: StepSetting, report: StepReport) -> None:
    """Open, copy, then the owner frees the memory, then it dies."""
    setting.needs_cuda("handles of CUDA need CUDA")
    runtime = importlib.import_module("cuda.bindings.runtime")  # has no types

    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    owner = context.Process(target=_own, args=(theirs,), daemon=True)
    owner.start()
    theirs.close()
    handle_bytes = pipe.recv()
    if isinstance(handle_bytes, str):
        report.figure("exporting", handle_bytes)
        return
    handle = runtime.cudaIpcMemHandle_t()
    handle.reserved = handle_bytes
    code, theirs_at = runtime.cudaIpcOpenMemHandle(handle, _LAZY_PEER_ACCESS)
    report.figure("opening", str(code))
    _, mine = runtime.cudaMalloc(_SIZE)
    report.figure("copy", _copy(runtime, mine, theirs_at))
    ends = {"freed the memory": lambda: pipe.send("free"), "been killed": owner.kill}
    for event, end in ends.items():
        end()
        time.sleep(_SETTLE_SECONDS)
        name = f"copy after the owner has {event}"
        report.figure(name, "it did not return")  # stays when the copy takes this process with it
        report.figure(name, _copy(runtime, mine, theirs_at))


def _own(pipe: Connection) -> None:
    runtime = importlib.import_module("cuda.bindings.runtime")  # has no types

    code, address = runtime.cudaMalloc(_SIZE)
    code, handle = runtime.cudaIpcGetMemHandle(address)
    if int(code):
        pipe.send(f"cudaIpcGetMemHandle refuses with {code}")
        return
    pipe.send(bytes(handle.reserved))
    pipe.recv()
    runtime.cudaFree(address)
    time.sleep(60)


def _copy(runtime: Any, target: Any, source: Any) -> str:
    started = time.perf_counter()
    (code,) = runtime.cudaMemcpy(target, source, _SIZE, runtime.cudaMemcpyKind(_TO_SAME_DEVICE))
    runtime.cudaDeviceSynchronize()
    return f"{code}, {_SIZE / (time.perf_counter() - started) / 1e9:.1f} GB/s"
