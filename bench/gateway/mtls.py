"""What TLS between all processes costs: the same cluster once more, with `security.mtls`."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.gateway.turns import Case, Turn, Turns
from bench.table import markdown
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.wires.authority import Authority

NAME = "ours, mtls"


def protected(manifest: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """Returns the manifest with certificates, which are there until the stack is left."""
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="llmserve-bench-certs-")))
    authority = Authority.make(manifest["metadata"]["name"], days=1.0)
    for role in CallerRole:
        authority.issue(folder, role, days=1.0)
    spec = manifest["spec"]
    security = spec.get("security", {}) | {"mtls": {"directory": str(folder)}}
    return manifest | {"spec": spec | {"security": security}}


def table(results: Mapping[Case, Turns]) -> str:
    """Empty when it was not measured. kept: the share of the throughput that is left."""
    rows = [_row(case, turns) for case, turns in results.items() if NAME in turns]
    headings = ("case", "clients", "requests/s", "with mTLS", "kept", "CPU ms a request", "with mTLS")
    return markdown(headings, rows) if rows else ""


def _row(case: Case, turns: Turns) -> tuple[object, ...]:
    rates = [_rate(turns[name]) for name in ("ours", NAME)]
    costs = [statistics.median(sum(turn.cpu_ms.values()) for turn in turns[name]) for name in ("ours", NAME)]
    kept = f"{rates[1] / rates[0]:.1%}"
    return str(case), case.clients, *(f"{rate:.0f}" for rate in rates), kept, *(f"{ms:.2f}" for ms in costs)


def _rate(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.load.requests / turn.load.seconds for turn in turns)
