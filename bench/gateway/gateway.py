"""What apiserver and router add: requests/s and latency with simulated engines that answer at once.

Every millisecond here is ours or vLLM's serving layer's: the engines take none. The client runs on
the same machine and takes its share of the cores.
"""

import argparse
import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from bench.cluster import running
from bench.table import markdown

CLIENTS = (1, 32, 256)
OUTPUT_TOKENS = 16
SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    requests: int
    failed: int
    seconds: float
    latencies: list[float]

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of load, for each number of clients")


def run(seconds: float) -> str:
    manifest = yaml.safe_load(Path("examples/sim.yaml").read_text())
    instant = {"prefill_tokens_per_second": 0, "decode_step_seconds": 0, "decode_seconds_per_sequence": 0}
    manifest["spec"].setdefault("engine", {}).setdefault("sim", {}).update(instant)
    manifest["spec"]["engine"]["max_decode_concurrency"] = 512
    model = manifest["spec"]["models"]["primary"]["name"]
    with running(manifest) as cluster:
        rows = []
        for stream in (False, True):
            for clients in CLIENTS:
                load = asyncio.run(drive(cluster.url, model, clients, stream, seconds))
                rows.append(_row("streamed" if stream else "plain", clients, load))
    headings = ("chat", "clients", "requests/s", "p50 ms", "p99 ms", "failed")
    return markdown(headings, rows)


def _row(kind: str, clients: int, load: Load) -> tuple[object, ...]:
    rate = load.requests / load.seconds
    p50, p99 = 1000 * load.percentile(0.5), 1000 * load.percentile(0.99)
    return kind, clients, f"{rate:.0f}", f"{p50:.1f}", f"{p99:.1f}", load.failed


async def drive(url: str, model: str, clients: int, stream: bool, seconds: float = SECONDS) -> Load:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }
    latencies: list[float] = []
    failures: list[int] = []
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector) as session:
        await _one(session, url, body)  # warm
        started = time.perf_counter()
        deadline = started + seconds

        async def client() -> None:
            while time.perf_counter() < deadline:
                begun = time.perf_counter()
                if await _one(session, url, body) == 200:
                    latencies.append(time.perf_counter() - begun)
                else:
                    failures.append(1)

        await asyncio.gather(*(client() for _ in range(clients)))
        return Load(len(latencies), len(failures), time.perf_counter() - started, latencies)


async def _one(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> int:
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        await response.read()
        return int(response.status)
