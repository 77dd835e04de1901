"""Ten minutes of load on simulated engines with clients that hang up at random: does any process grow?

The memory is private (memory.py); what is leased or placed at the end is to be 0.
"""

import argparse
import asyncio
import random
import time
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from bench.cluster import Cluster, running
from bench.processes.memory import MemoryWatch
from bench.table import markdown

CLIENTS, TENANTS = 16, 50
ABORTED_SHARE = 0.3
_SAMPLE_SECONDS = 2.0
_SETTLE_SECONDS = 30.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the load lasts")


def run(seconds: float) -> str:
    with running(_manifest()) as cluster:
        pids = {str(role["name"]): int(role["pid"]) for role in cluster.state()["roles"]}
        memory = MemoryWatch(pids)
        answered = asyncio.run(_load(cluster, memory, seconds))
        left = _left(cluster)
    growth, last = memory.growth_mib(), memory.last_mib()
    rows = [(name, f"{last[name]:.0f}", f"{growth[name]:+.1f}") for name in pids]
    table = markdown(("process", "MiB at the end", "MiB more than when it was warm"), rows)
    return f"{answered} requests answered in {seconds:.0f} s. Left at the end: {left or 'nothing'}\n\n{table}"


def _manifest() -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load(Path("examples/sim.yaml").read_text())
    manifest["spec"]["security"] = {
        "api_keys": [{"tenant": f"t{number}", "key": f"key-{number}"} for number in range(TENANTS)]
    }
    return manifest


async def _load(cluster: Cluster, memory: MemoryWatch, seconds: float) -> int:
    ends = time.monotonic() + seconds
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as group:
        clients = [group.create_task(_client(http, cluster, number, ends)) for number in range(CLIENTS)]
        while time.monotonic() < ends:
            await asyncio.sleep(_SAMPLE_SECONDS)
            memory.sample()
    return sum(client.result() for client in clients)


async def _client(http: aiohttp.ClientSession, cluster: Cluster, number: int, ends: float) -> int:
    draw, answered, model = random.Random(number), 0, str(cluster.state()["model"])
    while time.monotonic() < ends:
        patience = draw.uniform(0.0, 0.3) if draw.random() < ABORTED_SHARE else 60.0
        try:
            async with asyncio.timeout(patience):
                answered += await _ask(http, cluster.url, model, draw)
        except TimeoutError:
            continue
    return answered


async def _ask(http: aiohttp.ClientSession, url: str, model: str, draw: random.Random) -> int:
    prefix = random.Random(draw.randrange(40))
    prompt = [prefix.randrange(1000) for _ in range(400)] + [draw.randrange(1000) for _ in range(50)]
    body = {
        "model": model,
        "prompt": prompt[draw.randrange(300) :],
        "max_tokens": draw.randint(1, 40),
        "ignore_eos": True,
        "stream": True,
    }
    headers = {"authorization": f"Bearer key-{draw.randrange(TENANTS)}"}
    async with http.post(f"{url}/v1/completions", json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        await response.read()
    return 1


def _left(cluster: Cluster) -> str:
    """What is still held when nobody asks any more."""
    ends = time.monotonic() + _SETTLE_SECONDS
    while held := _held(cluster):
        if time.monotonic() > ends:
            return ", ".join(f"{name} {value:g}" for name, value in held.items())
        time.sleep(0.5)
    return ""


def _held(cluster: Cluster) -> dict[str, float]:
    names = ("kv_open_leases", "kv_orphan_blocks", "router_running_requests", "router_queued_requests")
    found: dict[str, float] = {}
    for role in ("kvmanager-0", "router-0"):
        samples = cluster.metrics(role)
        found |= {name: samples[name] for name in names if samples.get(name)}
    return found
