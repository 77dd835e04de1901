"""What metrics cost: CPU time for counting and for being scraped, as a share of all that a request takes.

A cluster with and one without them differ by less than two runs of the same one. So the calls of
prometheus_client are counted, in every process of a cluster whose engines take no time, and each kind of
call is timed by itself. Every millisecond of that cluster is ours: engines that compute make the share less.
"""

import asyncio
import itertools
import json
import os
import tempfile
import time
import timeit
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from bench.cluster import Cluster, running
from bench.gateway.load import Prompts, chat, drive
from bench.ports import free_port
from bench.table import markdown

CLIENTS, OUTPUT_TOKENS, SECONDS = 32, 16, 10.0
SCRAPE_EVERY_SECONDS = 5.0
SCRAPES = 20
SCRAPE_PAUSE_SECONDS = 0.6  # the page of a cluster is made at most twice a second
ENGINE_BATCH = 64
COUNTING = Path(__file__).parent / "metric_calls"


@dataclass(frozen=True, slots=True)
class Run:
    """Of the load: its requests, seconds, and CPU seconds of all processes; CPU seconds of one scrape; how
    often each call was made."""

    requests: int
    seconds: float
    cpu_seconds: float
    scrape_cpu_seconds: float
    calls: Tally[str]


def run() -> str:
    found = _measure()
    costs = call_seconds()
    counting = sum(costs[name] * times for name, times in found.calls.items())
    scraping = found.scrape_cpu_seconds * found.seconds / SCRAPE_EVERY_SECONDS
    each = 1e6 / found.requests
    rows = [
        (f"{name}, {found.calls[name] / found.requests:.1f} a request", f"{cost * 1e6:.2f} us each")
        for name, cost in costs.items()
    ]
    rows += [
        (f"a scrape of all processes, each {SCRAPE_EVERY_SECONDS:g} s", _ms(found.scrape_cpu_seconds)),
        ("counting, a request", f"{counting * each:.0f} us"),
        ("being scraped, a request", f"{scraping * each:.0f} us"),
        ("a request, all processes", f"{found.cpu_seconds * each:.0f} us"),
        ("share of metrics", f"{100 * (counting + scraping) / found.cpu_seconds:.2f}%"),
        (f"vLLM's own metrics, a step of {ENGINE_BATCH} requests", _ms(engine_step_seconds())),
    ]
    return markdown(("CPU time of", ""), rows)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _measure() -> Run:
    manifest = yaml.safe_load(Path("examples/sim.yaml").read_text())
    instant = {"prefill_tokens_per_second": 0, "decode_step_seconds": 0, "decode_seconds_per_sequence": 0}
    manifest["spec"]["engine"]["sim"].update(instant)
    manifest["spec"]["observability"] = {"port": free_port()}
    model = manifest["spec"]["models"]["primary"]["name"]
    page = f"http://127.0.0.1:{manifest['spec']['observability']['port']}/metrics"
    with _counting() as calls:
        with running(manifest) as cluster:
            before = _cpu_seconds(cluster)
            prompts = Prompts(cluster.url, model, chat(30), OUTPUT_TOKENS, stream=True)
            load = asyncio.run(drive(cluster.url, prompts, CLIENTS, SECONDS, itertools.count(1)))
            spent = _cpu_seconds(cluster) - before
            scrape = _scrape_cpu_seconds(cluster, page)
        return Run(load.requests, load.seconds, spent, scrape, calls())


@contextmanager
def _counting() -> Iterator[Callable[[], Tally[str]]]:
    """All processes that are started meanwhile count. Yields what adds up what those that ended counted."""
    path = os.environ.get("PYTHONPATH", "")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"LLMSERVE_METRIC_CALLS": folder, "PYTHONPATH": f"{COUNTING}{os.pathsep}{path}"}
        try:
            yield lambda: sum(map(_read, Path(folder).glob("*.json")), Tally())
        finally:
            del os.environ["LLMSERVE_METRIC_CALLS"]
            os.environ["PYTHONPATH"] = path


def _read(path: Path) -> Tally[str]:
    return Tally(json.loads(path.read_text()))


def _cpu_seconds(cluster: Cluster) -> float:
    supervisor = psutil.Process(cluster.supervisor.pid)
    family = [supervisor, *supervisor.children(recursive=True)]
    return float(sum(sum(process.cpu_times()[:2]) for process in family))


def _scrape_cpu_seconds(cluster: Cluster, page: str) -> float:
    """Beyond what the idle cluster takes in the same time."""
    with httpx.Client(timeout=10) as http:
        idle = _cpu_while(cluster, lambda: None)
        return (_cpu_while(cluster, lambda: http.get(page)) - idle) / SCRAPES


def _cpu_while(cluster: Cluster, act: Callable[[], object]) -> float:
    before = _cpu_seconds(cluster)
    for _ in range(SCRAPES):
        act()
        time.sleep(SCRAPE_PAUSE_SECONDS)
    return _cpu_seconds(cluster) - before


def call_seconds() -> dict[str, float]:
    """Of each call that sitecustomize.py counts; the best of several rounds."""
    registry = CollectorRegistry()
    counter = Counter("counter", "", ("label",), registry=registry)
    gauge = Gauge("gauge", "", registry=registry)
    histogram = Histogram("histogram", "", registry=registry)
    one: MetricWrapperBase = counter.labels("value")
    assert isinstance(one, Counter)
    return {
        "Counter.inc": _seconds(one.inc),
        "Gauge.inc": _seconds(gauge.inc),
        "Gauge.dec": _seconds(gauge.dec),
        "Gauge.set": _seconds(lambda: gauge.set(1)),
        "Histogram.observe": _seconds(lambda: histogram.observe(1)),
        "MetricWrapperBase.labels": _seconds(lambda: counter.labels("value")),
    }


def _seconds(call: Callable[[], object], times: int = 20_000) -> float:
    return min(timeit.repeat(call, timer=time.process_time, number=times, repeat=5)) / times


def engine_step_seconds() -> float:
    """A worker's own time for vLLM's metrics in a step that gives each request of a batch a token. It runs
    beside the engine's process, not in it."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats

    from llmserve.core.ids import RequestId
    from llmserve.core.request import EngineRequest, SamplingLimits
    from llmserve.engines.vllm.convert import to_core_request
    from llmserve.engines.vllm.stats import VllmMetrics

    names = [str(number) for number in range(ENGINE_BATCH)]
    metrics = VllmMetrics(_engine_config(), CollectorRegistry())
    for name in names:
        metrics.added(to_core_request(EngineRequest(RequestId(name), [1, 2], SamplingLimits(1000))))
    outputs = [EngineCoreOutput(name, [1]) for name in names]
    step = EngineCoreOutputs(outputs=outputs, scheduler_stats=SchedulerStats(), timestamp=1.0)
    return _seconds(lambda: metrics.record(step), times=200)


def _engine_config() -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from llmserve.config.load import load_manifest
    from llmserve.models import resolve

    model = resolve(load_manifest(Path("llmserve.yaml")).model)
    return AsyncEngineArgs(model=str(model.path), max_model_len=2048).create_engine_config()
