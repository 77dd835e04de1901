"""`llmserve simulate` against a real local cluster of simulated engines: the same manifest, the same trace.

The real one adds HTTP, tokenizing, gRPC and the noise of the machine, which the simulation leaves out; the
last row is what a thousand workers cost in simulation.
"""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from bench.cluster import running
from bench.table import markdown
from llmserve.config.load import load_manifest
from llmserve.core.ids import DEFAULT_TENANT
from llmserve.core.stats import Percentiles
from llmserve.simulate.mix import REQUEST_KINDS, RequestKind, RequestMix
from llmserve.simulate.report import Goals, SimReport
from llmserve.simulate.run import Simulation
from llmserve.simulate.shape import ClusterShape, Overrides
from llmserve.traces import TracedRequest

_SIM = {
    "prefill_tokens_per_second": 4000,
    "decode_step_seconds": 0.04,
    "decode_seconds_per_sequence": 0.0005,
    "blocks": 2048,
}
_EXAMPLE = Path("examples/sim.yaml")


@dataclass(frozen=True, slots=True)
class _Load:
    name: str
    requests_per_second: float


# 24 places, some 1.9 s each: 12 requests a second are what there is.
_LOADS = (_Load("half of what it can", 6.0), _Load("more than it can", 16.0))
_SECONDS = 30.0
_PLACES = 24


@dataclass(frozen=True, slots=True)
class _Timed:
    first_token: float
    total: float
    gap: float


def run() -> str:
    rows = [row for load in _LOADS for row in _compare(load)]
    table = markdown(("load", "seconds", "simulated p50, p99", "real p50, p99", "real / simulated"), rows)
    return f"{table}\n\n{_thousand()}"


def _compare(load: _Load) -> list[tuple[object, ...]]:
    kinds = [(RequestKind(200, 24), 7.0), (RequestKind(1200, 80), 3.0)]
    mix = RequestMix(kinds, [(DEFAULT_TENANT, 1.0)], load.requests_per_second, _SECONDS)
    requests = [replace(r, max_output_tokens=r.output_tokens) for r in mix.requests(random.Random(7))]
    manifest = _manifest()
    simulated = _simulated(manifest, requests)
    with running(manifest) as cluster:
        timed = asyncio.run(_play(cluster.url, requests))
    return _rows(load, simulated, timed)


def _manifest() -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(_EXAMPLE.read_text())
    spec = manifest["spec"]
    spec["deployment"]["replicas"] = {"prefill": 1, "decode": 2}
    spec["engine"]["sim"].update(_SIM)
    spec["budgets"] = {"max_requests_in_flight": _PLACES}
    spec["scheduling"]["queue_timeout_seconds"] = 600  # none is refused: each has its times
    return manifest


def _simulated(manifest: dict[str, Any], requests: Sequence[TracedRequest]) -> SimReport:
    path = Path("build-simulate.yaml")
    path.write_text(yaml.safe_dump(manifest))
    try:
        shape = ClusterShape.of(load_manifest(path), Overrides())
    finally:
        path.unlink()
    simulation = Simulation(shape, requests)
    simulation.run()
    return simulation.report(Goals())


def _rows(load: _Load, simulated: SimReport, timed: Sequence[_Timed]) -> list[tuple[object, ...]]:
    pairs = (
        ("to the first token", simulated.first_token, Percentiles.of([one.first_token for one in timed])),
        ("in all", simulated.total, Percentiles.of([one.total for one in timed])),
        (
            "between tokens, a request's mean",
            simulated.request_gaps,
            Percentiles.of([one.gap for one in timed]),
        ),
    )
    name = f"{load.requests_per_second:g} requests/s: {load.name}"
    return [(name, what, _texts(a), _texts(b), _ratios(a, b)) for what, a, b in pairs]


def _texts(spread: Percentiles) -> str:
    return f"{spread.p50:.3f}, {spread.p99:.3f}"


def _ratios(simulated: Percentiles, real: Percentiles) -> str:
    return f"{real.p50 / simulated.p50:.2f}, {real.p99 / simulated.p99:.2f}"


# -- the real one


async def _play(url: str, requests: Sequence[TracedRequest]) -> list[_Timed]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await _timed(session, url, TracedRequest(0.0, 10, 2), asyncio.get_running_loop().time())  # warm
        start = asyncio.get_running_loop().time()
        return await asyncio.gather(
            *(_timed(session, url, request, start + request.arrived_at) for request in requests)
        )


async def _timed(session: aiohttp.ClientSession, url: str, request: TracedRequest, at: float) -> _Timed:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, at - loop.time()))
    first = last = 0.0
    async with session.post(f"{url}/v1/completions", json=_body(request)) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {") and json.loads(line[6:]).get("choices"):
                last = loop.time()
                first = first or last
    return _Timed(first - at, last - at, (last - first) / max(1, request.output_tokens - 1))


def _body(request: TracedRequest) -> dict[str, Any]:
    return {
        "model": "SmolLM2-135M-Instruct",
        "prompt": [random.randrange(1000, 40_000) for _ in range(request.prompt_tokens)],
        "max_tokens": request.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }


# -- a thousand workers


def _thousand() -> str:
    """The seconds of this machine's CPU, not of the wall."""
    shape = ClusterShape.of(load_manifest(_EXAMPLE), Overrides(prefill_workers=200, decode_workers=800))
    policy = replace(
        shape.router.policy, limits=replace(shape.router.policy.limits, max_requests_in_flight=None)
    )
    shape = replace(shape, router=replace(shape.router, policy=policy))
    mix = RequestMix(
        [(REQUEST_KINDS["short"], 7.0), (REQUEST_KINDS["long"], 3.0)], [(DEFAULT_TENANT, 1.0)], 1500.0, 20.0
    )
    requests = mix.requests(random.Random(7))
    started = time.process_time()
    simulation = Simulation(shape, requests)
    simulation.run()
    seconds = time.process_time() - started
    report = simulation.report(Goals())
    tokens = sum(line.decode_tokens + line.prefill_tokens for line in report.workers)
    return (
        f"1,000 workers, {len(requests):,} requests, {tokens / 1e6:.1f} million tokens in "
        f"{report.seconds:.0f} virtual seconds: {seconds:.1f} s of CPU, "
        f"{1e6 * seconds / len(requests):.0f} µs a request."
    )
