"""What a start of the default cluster takes: the first one, with nothing in the caches, and the next.

Seconds until it is ready, and CPU of all its processes until then, ended ones too: on a busy machine the
seconds say little.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import yaml

from bench.cluster import Cluster, running
from bench.table import markdown

CACHE = "LLMSERVE_CACHE_DIR"
STARTS = ("the first", "again")


def run() -> str:
    manifest = yaml.safe_load(Path("llmserve.yaml").read_text())
    columns: list[dict[str, float]] = []
    with empty_cache():
        for _ in STARTS:
            began = time.monotonic()
            with running(manifest) as cluster:
                columns.append({"seconds until ready": time.monotonic() - began, **_cpu(cluster)})
    rows = [(what, *(f"{column[what]:.1f}" for column in columns)) for what in columns[0]]
    return markdown(("", *STARTS), rows)


@contextmanager
def empty_cache() -> Iterator[None]:
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory(prefix="llmserve-bench-cache-") as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            os.environ.pop(CACHE)
            if before is not None:
                os.environ[CACHE] = before


def _cpu(cluster: Cluster) -> dict[str, float]:
    """CPU seconds by process. What the supervisor has waited for is the preparation of the model."""
    supervisor = psutil.Process(cluster.supervisor.pid)
    cpu = {role["name"]: _tree(psutil.Process(role["pid"])) for role in cluster.state()["roles"]}
    times = supervisor.cpu_times()
    cpu = {"model": times.children_user + times.children_system, "supervisor": _own(supervisor), **cpu}
    return {f"CPU seconds of {name}": seconds for name, seconds in cpu.items()} | {
        "CPU seconds in all": sum(cpu.values())
    }


def _tree(root: psutil.Process) -> float:
    """A process, its descendants, and those that they have waited for."""
    seconds = 0.0
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:4])
    return seconds


def _own(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))
