"""The check of a GPU: the product's copies, staging, marks and transports beside their floors, in 8 minutes.

Each step is a process of its own with a time limit, so that a crash or a hang costs one step. The steps stand
in the order of their worth, because a machine with a GPU is often at hand for minutes only. Each step prints
one JSON line when it ends, and keeps what it had measured when it is stopped.

On a bare machine: `PYTHONPATH=src python3 -m bench gpu`. It needs Linux, torch, Triton, numpy, xxhash and
pytest. A step that needs more (NIXL, cuda-bindings, zstandard) says what is missing and is skipped.
`--fake` runs the same steps over a fake device; those that need real CUDA are skipped, with the reason.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.table import markdown

_TOTAL_SECONDS = 480.0
_LEAST_SECONDS = 3.0
_KEPT_ERRORS = 1500  # characters of what a failed step wrote
_ROOT = Path(__file__).parents[2]

JsonLine = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GpuStep:
    """function: as MODULE:NAME. seconds: its limit. environment: what its processes get
    beside the rest."""

    name: str
    function: str
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)


STEPS = (
    GpuStep("machine", "bench.gpu.floors:machine", 20),
    GpuStep("floors", "bench.gpu.floors:floors", 30),
    GpuStep("nixl", "bench.gpu.peers:nixl", 60, {"UCX_PROTO_INFO": "y"}),
    GpuStep("nixl without cuda_ipc", "bench.gpu.peers:nixl_speed", 20, {"UCX_TLS": "^cuda_ipc"}),
    GpuStep(
        "nixl with GET zero-copy", "bench.gpu.peers:nixl_speed", 20, {"UCX_CUDA_IPC_ENABLE_GET_ZCOPY": "on"}
    ),
    GpuStep("nixl without a device", "bench.gpu.peers:nixl_without_device", 20),
    GpuStep("conformance", "bench.gpu.suites:conformance", 90),
    GpuStep("marks", "bench.gpu.marks:marks", 30),
    GpuStep("pinned arena", "bench.gpu.staged:arena", 50),
    GpuStep("staging", "bench.gpu.staged:staging", 45),
    GpuStep("pieces", "bench.gpu.floors:pieces", 50),
    GpuStep("deaths", "bench.gpu.peers:deaths", 40),
    GpuStep("cuda ipc", "bench.gpu.ipc:ipc", 20),
    GpuStep("formats", "bench.gpu.suites:formats", 50),
    GpuStep("nccl", "bench.gpu.peers:nccl", 20),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fake", action="store_true", help="run over a fake device")
    parser.add_argument(
        "--steps", nargs="+", default=(), choices=[step.name for step in STEPS], help="default: all"
    )
    parser.add_argument("--seconds", type=float, default=_TOTAL_SECONDS, help="limit of all steps together")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ["OUT"]) if "OUT" in os.environ else None,
        help="folder for gpu.jsonl; default: $OUT, or none",
    )


def run(
    fake: bool = False,
    steps: Sequence[str] = (),
    seconds: float = _TOTAL_SECONDS,
    out: Path | None = None,
) -> str:
    found = []
    for line in lines([step for step in STEPS if not steps or step.name in steps], fake, seconds):
        text = json.dumps(line)
        print(text, flush=True)
        if out is not None:
            with (out / "gpu.jsonl").open("a") as file:
                file.write(text + "\n")
        found.append(line)
    return _table(found)


def lines(steps: Sequence[GpuStep], fake: bool, seconds: float) -> Iterator[JsonLine]:
    """Runs the steps, and yields the line of each when it has ended. seconds: for all of them."""
    deadline = time.monotonic() + seconds
    for step in steps:
        left = deadline - time.monotonic()
        if left < _LEAST_SECONDS:
            yield {"step": step.name, "status": "skipped", "reason": f"{seconds:g} s for all steps are over"}
        else:
            yield _line(step, fake, min(step.seconds, left))


def _line(step: GpuStep, fake: bool, seconds: float) -> JsonLine:
    """Runs one step and says how it ended. status: ok, short (a goal was missed), skipped, failed, crashed or
    stopped (at its time limit)."""
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        result, errors = Path(folder) / "result.json", Path(folder) / "errors"
        command = [sys.executable, "-m", "bench.gpu.steps", step.function, str(result)]
        started = time.monotonic()
        code = _run_process([*command, *(["--fake"] if fake else [])], step, errors, seconds)
        found: JsonLine = json.loads(result.read_text()) if result.exists() else {}
        written = errors.read_text(errors="replace")[-_KEPT_ERRORS:]
    line: JsonLine = {"step": step.name, "status": found.pop("status", "crashed")}
    line["seconds"] = round(time.monotonic() - started, 1)
    if code is None:
        line |= {"status": "stopped", "reason": f"it ran longer than {seconds:.0f} s"}
    elif code and line["status"] != "failed":
        line |= {"status": "crashed", "reason": f"exit code {code}"}
    if line["status"] in ("failed", "crashed", "stopped"):
        found["errors"] = written
    return line | found


def _run_process(command: Sequence[str], step: GpuStep, errors: Path, seconds: float) -> int | None:
    """Returns the exit code; None when the time limit ended the process and those that it started."""
    path = os.pathsep.join(filter(None, [str(_ROOT / "src"), str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    with errors.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": path} | dict(step.environment),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(process)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Kills the step and whatever it started: they are a process group of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _table(found: Sequence[JsonLine]) -> str:
    rows = [[line["step"], line["status"], line.get("seconds", ""), _summary(line)] for line in found]
    return markdown(["step", "status", "seconds", "result"], rows)


def _summary(line: JsonLine) -> str:
    goals = [
        f"{name} {goal['ratio']:.2f} of {goal['floor']:.1f} GB/s (goal {goal['least']:g})"
        for name, goal in line.get("goals", {}).items()
    ]
    return "; ".join(filter(None, [line.get("reason", ""), *goals]))
