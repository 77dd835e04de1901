"""What an idle cluster costs: CPU of all its processes over 30 s without a request, and RSS per role."""

import argparse
import time
from pathlib import Path

import psutil
import yaml

from bench.cluster import Cluster, running
from bench.table import markdown

SETTLE_SECONDS = 10.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the CPU time is watched")


def run(seconds: float) -> str:
    with running(yaml.safe_load(Path("llmserve.yaml").read_text())) as cluster:
        time.sleep(SETTLE_SECONDS)
        return _table(cluster, seconds)


def _table(cluster: Cluster, seconds: float) -> str:
    families = families_of(cluster)
    before = {name: cpu_seconds(family) for name, family in families.items()}
    time.sleep(seconds)
    rows = []
    for name, family in families.items():
        percent = 100 * (cpu_seconds(family) - before[name]) / seconds
        rows.append((name, len(family), f"{percent:.2f}", f"{_rss_mib(family):.0f}"))
    total = sum(float(row[2]) for row in rows)
    return markdown(
        ("role", "processes", "% of one core, idle", "RSS MiB"), [*rows, ("all", "", f"{total:.2f}", "")]
    )


def families_of(cluster: Cluster) -> dict[str, list[psutil.Process]]:
    """Returns the processes of the supervisor and of each role, with those that they have started."""
    families = {"supervisor": [psutil.Process(cluster.supervisor.pid)]}
    for role in cluster.state()["roles"]:
        process = psutil.Process(role["pid"])
        families[role["name"]] = [process, *process.children(recursive=True)]
    return families


def cpu_seconds(family: list[psutil.Process]) -> float:
    return float(sum(sum(process.cpu_times()[:2]) for process in family))


def _rss_mib(family: list[psutil.Process]) -> float:
    return float(sum(process.memory_info().rss for process in family) / 2**20)
