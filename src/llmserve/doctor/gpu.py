"""NVIDIA GPUs as the driver and nvidia-smi describe them."""

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmserve.core.errors import LLMServeError
from llmserve.doctor.finding import Finding, note, ok, problem, warning
from llmserve.doctor.host import Host

Tool = Callable[[Sequence[str]], str]
"""Runs a program and returns what it printed. Errors: LLMServeError with the reason."""

_QUERY = ("nvidia-smi", "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader")
_PEERS = ("nvidia-smi", "topo", "-p2p", "r")
_TOOL_SECONDS = 10.0
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # nvidia-smi underlines its headings


@dataclass(frozen=True, slots=True)
class Gpus:
    """What nvidia-smi listed, a line each; or why it could not."""

    lines: tuple[str, ...] = ()
    trouble: str = ""


def run_tool(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False)
    except FileNotFoundError:
        raise LLMServeError(f"{command[0]} is not installed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LLMServeError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).partition("\n")[0]
        raise LLMServeError(f"{command[0]} failed: {said or f'exit code {done.returncode}'}")
    return done.stdout


def find_gpus(devices: Sequence[int], tool: Tool) -> Gpus:
    """devices: indices of /dev/nvidiaN. Without any, nvidia-smi is not asked."""
    if not devices:
        return Gpus()
    try:
        lines = tuple(line.strip() for line in tool(_QUERY).splitlines() if line.strip())
    except LLMServeError as error:
        return Gpus(trouble=error.message)
    return Gpus(lines)


def gpus(host: Host, devices: Sequence[int], found: Gpus) -> Finding:
    driver = host.text("proc/driver/nvidia/version")
    if not devices and driver:
        advice = (
            "The NVIDIA driver is loaded, but no GPU is visible here: docker run --gpus all, and look at "
            "CUDA_VISIBLE_DEVICES."
        )
        return warning("GPUs", "none visible", advice, gpus=0)
    if not devices:
        return ok("GPUs", "none; engines run on the CPU", gpus=0)
    if found.trouble:
        advice = f"The driver does not answer ({found.trouble}): install it again, or restart the machine."
        return problem("GPUs", f"{len(devices)} devices", advice, gpus=len(devices))
    return ok("GPUs", "; ".join(found.lines), gpus=len(devices))


def gpu_peers(tool: Tool) -> Finding:
    """Whether GPUs reach each other's memory. For machines with several."""
    try:
        matrix = _matrix(tool(_PEERS))
    except LLMServeError as error:
        return note("GPU peer access", "unknown", f"It was not checked: {error.message}.")
    apart = sorted({state for row in matrix for state in row} - {"OK", "X"})
    if not matrix:
        return note("GPU peer access", "unknown", "nvidia-smi topo -p2p r printed no table.")
    if apart:
        advice = "KV between GPUs that do not reach each other goes through host memory, which is slower."
        return note("GPU peer access", f"not between all ({', '.join(apart)})", advice)
    return ok("GPU peer access", f"between all {len(matrix)}")


def _matrix(text: str) -> list[list[str]]:
    """Rows `GPU0 X OK ...`; the heading names GPUs only."""
    rows = [line.split() for line in _ESCAPES.sub("", text).splitlines()]
    return [row[1:] for row in rows if len(row) > 1 and row[0].startswith("GPU") and row[1][:3] != "GPU"]
