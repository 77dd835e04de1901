"""Coverage-guided fuzzing of the decoders: `python -m bench fuzz --seconds 600 [--only NAME]`.

It needs the extra `fuzz` (pip install 'atheris==3.0.0'). What it finds is mended, and kept as a test of the
decoder; the input is printed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.fuzz.targets import TARGETS
from bench.table import markdown

_START_SECONDS = 120.0
_RUNS = re.compile(r"stat::number_of_executed_units: (\d+)")
_REACHED = re.compile(r"cov: (\d+)")
_SHOWN = 600


@dataclass(frozen=True, slots=True)
class FuzzResult:
    """runs: number of inputs. reached: places in the code that some input reached. find: an input that the
    decoder does not expect, with what it raised; empty: none was found."""

    runs: int
    reached: int
    find: str


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=int, default=60, help="for each decoder")
    parser.add_argument("--only", choices=sorted(TARGETS), help="this decoder alone")


def run(seconds: int = 60, only: str | None = None) -> str:
    results = {name: _fuzz(name, seconds) for name in ([only] if only else TARGETS)}
    rows = [
        [name, f"{one.runs:,}", str(one.reached), "one" if one.find else "none"]
        for name, one in results.items()
    ]
    table = markdown(["decoder", "inputs", "places reached", "finds"], rows)
    finds = [f"{name}: {one.find}" for name, one in results.items() if one.find]
    return "\n\n".join([table, *finds])


def _fuzz(name: str, seconds: int) -> FuzzResult:
    with tempfile.TemporaryDirectory(prefix="llmserve-fuzz-") as folder:
        command = [sys.executable, "-m", "bench.fuzz.one", name, folder, str(seconds)]
        limit = seconds + _START_SECONDS
        own = {**os.environ, "TMPDIR": folder}
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False, env=own)
        said = done.stdout + done.stderr
        runs, reached = _RUNS.search(said), _REACHED.findall(said)
        if runs is None:
            raise SystemExit(f"{name} did not run: {said[-_SHOWN:]}")
        inputs = [path.read_bytes() for path in Path(folder).iterdir() if path.is_file()]
        raised = said[said.find("Uncaught Python exception") :][:_SHOWN] if inputs else ""
        find = f"{inputs[0][:_SHOWN]!r}\n{raised}" if inputs else ""
        return FuzzResult(int(runs[1]), int(reached[-1]) if reached else 0, find)
