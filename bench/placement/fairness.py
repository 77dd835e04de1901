"""Fair shares on the real path: processes, gRPC, two apiservers, simulated engines.

Closed loops of clients, each with one request at a time, so that a tenant with more clients than places
always has some that wait. The baseline of each figure is in its row: what fair would be, or the same
requests without the attack, in turns with it.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from bench.cluster import Cluster, running
from bench.table import markdown
from llmserve.core.stats import jain

SETTLE_SECONDS = 5.0
SECONDS = 40.0
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Crowd:
    """Clients of a tenant that send requests of these sizes (tokens), one after the other."""

    tenant: str
    clients: int
    prompt: tuple[int, int]
    output: tuple[int, int]


@dataclass(slots=True)
class Served:
    """Of the requests that ended while it was counted. tokens: prompt and answer."""

    tokens: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)

    def p99(self, tenant: str) -> float:
        ordered = sorted(self.seconds[tenant])
        return ordered[int(len(ordered) * 0.99)]


CHAT = (50, 150), (8, 24)
LONG = (800, 1600), (20, 60)
SHORT = (20, 60), (8, 16)


def run() -> str:
    rows: list[tuple[object, ...]] = []
    with _cluster({"gold": 4.0}, places=32) as cluster:
        rows.append(_weights(cluster))
        rows.append(_ten_times(cluster))
    with _cluster({}, places=48) as cluster:
        rows.append(_attack(cluster))
    return markdown(("what", "measured", "goal", "requests", "failed"), rows)


def _weights(cluster: Cluster) -> tuple[object, ...]:
    served = _drive(cluster, [Crowd("gold", 96, *CHAT), Crowd("basic", 64, *CHAT)])
    ratio = served.tokens["gold"] / served.tokens["basic"]
    what = "tokens of weight 4 for each of weight 1, both backlogged"
    return what, f"{ratio:.3f}", "4 within 3%", _count(served), served.failed.total()


def _ten_times(cluster: Cluster) -> tuple[object, ...]:
    names = [f"tenant-{index}" for index in range(4)]
    served = _drive(cluster, [*(Crowd(name, 16, *CHAT) for name in names), Crowd("flood", 160, *CHAT)])
    index = jain(float(served.tokens[name]) for name in (*names, "flood"))
    what = "Jain index of five tenants, one of them with 10 times the clients"
    return what, f"{index:.4f}", "at least 0.98", _count(served), served.failed.total()


def _attack(cluster: Cluster) -> tuple[object, ...]:
    """Quiet and attacked in turns."""
    quiet, attacked = Served(), Served()
    short, flood = Crowd("short", 4, *SHORT), Crowd("flood", 100, *LONG)
    for _ in range(ROUNDS):
        _add(quiet, _drive(cluster, [short], SECONDS / 2))
        _add(attacked, _drive(cluster, [short, flood], SECONDS / 2))
    base, ours = quiet.p99("short"), attacked.p99("short")
    what = "p99 of short requests under a flood of long ones, to that without"
    measured = f"{ours / base:.2f} ({base:.2f} s, {ours:.2f} s)"
    return what, measured, "at most 2", _count(attacked), attacked.failed.total()


def _count(served: Served) -> int:
    return sum(map(len, served.seconds.values()))


def _add(total: Served, more: Served) -> None:
    for tenant, seconds in more.seconds.items():
        total.seconds.setdefault(tenant, []).extend(seconds)
    total.failed.update(more.failed)


# -- the cluster


@contextmanager
def _cluster(weights: dict[str, float], places: int) -> Iterator[Cluster]:
    manifest = yaml.safe_load(Path("examples/sim.yaml").read_text())
    tenants = ("gold", "basic", "flood", "short", *(f"tenant-{index}" for index in range(4)))
    spec = manifest["spec"]
    spec["deployment"]["replicas"] = {"apiserver": 2, "prefill": 1, "decode": 2}
    spec["engine"]["sim"].update(
        prefill_tokens_per_second=40_000, decode_step_seconds=0.08, decode_seconds_per_sequence=0.0
    )
    spec["budgets"] = {"max_requests_in_flight": places}
    spec["scheduling"]["weights"] = [{"tenant": name, "weight": weight} for name, weight in weights.items()]
    spec["security"] = {"api_keys": [{"tenant": name, "key": _key(name)} for name in tenants]}
    with running(manifest) as cluster:
        yield cluster


def _key(tenant: str) -> str:
    return f"key-of-{tenant}"


# -- the clients


def _drive(cluster: Cluster, crowds: Sequence[Crowd], seconds: float = SECONDS) -> Served:
    return asyncio.run(_drive_all(cluster, crowds, seconds))


async def _drive_all(cluster: Cluster, crowds: Sequence[Crowd], seconds: float) -> Served:
    """Counts from when all have settled; ends with everybody's last request cut off."""
    served = Served()
    urls = cycle(cluster.state()["base_urls"])
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        counting_from = time.monotonic() + SETTLE_SECONDS
        clients = [
            asyncio.create_task(_client(session, next(urls), crowd, served, counting_from))
            for crowd in crowds
            for _ in range(crowd.clients)
        ]
        await asyncio.sleep(SETTLE_SECONDS + seconds)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return served


async def _client(
    session: aiohttp.ClientSession, url: str, crowd: Crowd, served: Served, counting_from: float
) -> None:
    while True:
        prompt = [random.randrange(1000, 40_000) for _ in range(random.randint(*crowd.prompt))]
        output = random.randint(*crowd.output)
        begun = time.monotonic()
        status = await _ask(session, url, crowd.tenant, prompt, output)
        if (ended := time.monotonic()) < counting_from:
            continue
        if status != 200:
            served.failed[crowd.tenant] += 1
            continue
        served.tokens[crowd.tenant] += len(prompt) + output
        served.seconds.setdefault(crowd.tenant, []).append(ended - begun)


async def _ask(session: aiohttp.ClientSession, url: str, tenant: str, prompt: list[int], output: int) -> int:
    body: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct",
        "prompt": prompt,
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
    }
    headers = {"Authorization": f"Bearer {_key(tenant)}"}
    async with session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
        await response.read()
        return int(response.status)
