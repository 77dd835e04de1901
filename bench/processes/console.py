"""What viewers of the console cost: CPU of all processes of a cluster of simulated engines while nobody looks
at its status, while one does, and while ten do, by turns in the same run. With requests: CPU and time of each
request, while nobody looks and while ten do."""

import argparse
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import httpx
import psutil
import yaml

from bench.cluster import Cluster, running
from bench.table import Figure, markdown

SETTLE_SECONDS = 10.0
VIEWERS = (0, 1, 10)
VIEWERS_OF_LOAD = (0, 10)
USERS = 4
_LEAST_EVENTS_PER_SECOND = 1.5  # of two: fewer, and it is no viewer that was measured
_REQUEST = {"prompt": list(range(300, 500)), "max_tokens": 16}


class Loaded(NamedTuple):
    """cpu_ms: of all processes, for each request. request_ms: median from end to end."""

    cpu_ms: float
    request_ms: float


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each turn is")
    parser.add_argument("--turns", type=int, default=6, help="of each number of viewers")
    parser.add_argument("--requests", type=int, default=0, help="of each turn; 0: what an idle cluster costs")


def run(seconds: float, turns: int, requests: int) -> str:
    with running(yaml.safe_load(Path("examples/sim.yaml").read_text())) as cluster:
        _warm_up(cluster)
        family = psutil.Process(cluster.supervisor.pid).children(recursive=True)
        pids = [cluster.supervisor.pid, *(process.pid for process in family)]
        if requests:
            return _loaded_table(_loaded_turns(cluster, pids, requests, turns), requests)
        found: dict[int, list[float]] = {viewers: [] for viewers in VIEWERS}
        for _ in range(turns):
            for viewers in VIEWERS:
                found[viewers].append(_percent(cluster, pids, viewers, seconds))
        return _table(found, len(pids))


def _warm_up(cluster: Cluster) -> None:
    """Every way between two engines is used, so that the status shows them."""
    with httpx.Client(base_url=cluster.url, timeout=60) as client:
        model = _model(client)
        for first in range(64):
            body = {"model": model, "prompt": [first + 300] * 200, "max_tokens": 4}
            client.post("/v1/completions", json=body).raise_for_status()
    time.sleep(SETTLE_SECONDS)


def _model(client: httpx.Client) -> str:
    return str(client.get("/v1/models").raise_for_status().json()["data"][0]["id"])


def _loaded_turns(cluster: Cluster, pids: list[int], requests: int, turns: int) -> dict[int, list[Loaded]]:
    """Who is first changes from turn to turn."""
    found: dict[int, list[Loaded]] = {viewers: [] for viewers in VIEWERS_OF_LOAD}
    for turn in range(turns):
        for viewers in VIEWERS_OF_LOAD[:: 1 if turn % 2 else -1]:
            with _watching(cluster.url, viewers):
                before = _cpu_seconds(pids)
                times = _ask(cluster.url, requests)
                cpu = _cpu_seconds(pids) - before
            found[viewers].append(Loaded(1000 * cpu / requests, 1000 * median(times)))
    return found


def _ask(url: str, requests: int) -> list[float]:
    """Returns the seconds of each request. Each user sends its next request when it has its answer."""
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(USERS) as users:
        body = {"model": _model(client), **_REQUEST}

        def one(_: int) -> float:
            began = time.monotonic()
            client.post("/v1/completions", json=body).raise_for_status()
            return time.monotonic() - began

        return list(users.map(one, range(requests)))


def _percent(cluster: Cluster, pids: list[int], viewers: int, seconds: float) -> float:
    """Returns CPU time in percent of one core."""
    with _watching(cluster.url, viewers):
        before, began = _cpu_seconds(pids), time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        return 100 * (_cpu_seconds(pids) - before) / passed


@contextmanager
def _watching(url: str, viewers: int) -> Iterator[None]:
    """All viewers see the status when this begins, and until it ends."""
    all_see, over = threading.Barrier(viewers + 1), threading.Event()
    events = [0] * viewers
    threads = [
        threading.Thread(target=_watch, args=(url, index, events, all_see, over)) for index in range(viewers)
    ]
    for thread in threads:
        thread.start()
    all_see.wait(30)
    began = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - began
        over.set()
        for thread in threads:
            thread.join(30)
    assert all(count > seconds * _LEAST_EVENTS_PER_SECOND for count in events), events


def _watch(
    url: str, index: int, events: list[int], all_see: threading.Barrier, over: threading.Event
) -> None:
    with httpx.stream("GET", f"{url}/admin/v1/events", timeout=30) as answer:
        for line in answer.iter_lines():
            if line != "event: status":
                continue
            if not events[index]:
                all_see.wait(30)
            events[index] += 1
            if over.is_set():
                return


def _cpu_seconds(pids: list[int]) -> float:
    """Exact to the nanosecond: what ticks of a clock say is too coarse for so little."""
    tasks = (path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in tasks) / 1e9


def _table(found: dict[int, list[float]], processes: int) -> str:
    rows = []
    for viewers, percents in found.items():
        more = [one - none for one, none in zip(percents, found[0], strict=True)]
        each = f"{Figure.of(more).median / viewers:.2f}" if viewers else ""
        rows.append((viewers, Figure.of(percents).text(2), Figure.of(more).text(2) if viewers else "", each))
    headings = (f"viewers ({processes} processes)", "% of one core", "more than without", "a viewer")
    return markdown(headings, rows)


def _loaded_table(found: dict[int, list[Loaded]], requests: int) -> str:
    rows = []
    for viewers, turns in found.items():
        row = [str(viewers)]
        for name in Loaded._fields:
            values = [getattr(one, name) for one in turns]
            ratios = [value / getattr(none, name) for value, none in zip(values, found[0], strict=True)]
            row += [Figure.of(values).text(2), Figure.of(ratios).text(3) if viewers else ""]
        rows.append(row)
    headings = (f"viewers ({USERS} users, {requests} requests)", "CPU ms a request", "as a multiple of none")
    return markdown((*headings, "request p50, ms", "as a multiple of none"), rows)
