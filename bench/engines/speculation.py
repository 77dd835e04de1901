"""Speculative decoding through a cluster, beside the same cluster without it.

A request copies a text that its prompt repeats, or writes at random. Both clusters run at the same time, and
are asked in turn, so that whatever else the machine does slows both. Engines switch proposals off that do
not pay. Where the draft is the model itself they never do; its acceptance shows that it knows the prompt.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.cluster import Cluster, running
from bench.table import Figure, markdown

_MODEL = "smollm2"
_WORDS = "river stone market clock sailor window garden letter copper winter basket candle engine silver"
_SECONDS = 600.0
_COUNTED_SECONDS = 3.0  # workers count with their heartbeats


@dataclass(frozen=True, slots=True)
class _Task:
    name: str
    repeats: int  # of the prompt's text
    temperature: float

    def prompt(self, number: int) -> str:
        draw = random.Random(number)
        return " ".join(draw.choices(_WORDS.split(), k=40) * self.repeats)


_TASKS = (_Task("copying", 4, 0.0), _Task("random text", 1, 1.0))


@dataclass(frozen=True, slots=True)
class _Size:
    """users: requests at the same time. tokens: of an answer."""

    rounds: int
    users: int
    tokens: int


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="of each task and cluster (default: 7)")
    parser.add_argument("--users", type=int, default=1, help="at the same time (default: 1)")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer (default: 256)")
    parser.add_argument("--proposed", type=int, default=4, help="tokens in a step (default: 4)")


def run(rounds: int, users: int, tokens: int, proposed: int) -> str:
    size = _Size(rounds, users, tokens)
    methods: dict[str, dict[str, Any]] = {
        "ngram": {"method": "ngram", "tokens": proposed},
        "draft = target": {"method": "draft", "tokens": proposed, "draft": {"source": _source()}},
    }
    rows: list[tuple[str, ...]] = []
    with running(_manifest({})) as plain:
        for name, speculation in methods.items():
            with running(_manifest(speculation)) as cluster:
                rows += asyncio.run(_compared(name, plain, cluster, size))
    heads = (
        "method",
        "task",
        "tokens/s without",
        "with",
        "times as many",
        "accepted",
        "tokens a step",
        "proposals",
    )
    return markdown(heads, rows)


def _spec() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(Path("llmserve.yaml").read_text())["spec"]
    return spec


def _source() -> str:
    return str(_spec()["models"]["primary"]["source"])


def _manifest(speculation: Mapping[str, Any]) -> dict[str, Any]:
    spec = _spec()
    spec["models"]["primary"]["name"] = _MODEL
    spec["kv_cache"] = {"memory_gb": 0.5}
    spec["scheduling"] = {"disaggregate": "always"}
    spec["observability"] = {"port": 0}
    if speculation:
        spec["engine"]["speculation"] = dict(speculation)
    return {"apiVersion": "llmserve/v1", "kind": "LLMServe", "metadata": {"name": "bench"}, "spec": spec}


async def _compared(name: str, plain: Cluster, cluster: Cluster, size: _Size) -> list[tuple[str, ...]]:
    rows = []
    async with httpx.AsyncClient(timeout=_SECONDS) as client:
        for task in _TASKS:
            for one in (plain, cluster):
                await _ask(client, one, task, 0, 8)
            await asyncio.sleep(_COUNTED_SECONDS)
            before = _Counted.of(cluster)
            pairs = [await _pair(client, plain, cluster, task, size, at) for at in range(size.rounds)]
            print(f"{name}, {task.name}: {pairs}", file=sys.stderr, flush=True)
            await asyncio.sleep(_COUNTED_SECONDS)
            rows.append((name, task.name, *_cells(pairs), *_Counted.of(cluster).since(before)))
    return rows


async def _pair(
    client: httpx.AsyncClient, plain: Cluster, cluster: Cluster, task: _Task, size: _Size, at: int
) -> tuple[float, float]:
    """Returns the tokens per second of both, asked in turn."""
    first = 1 + at * size.users
    return (
        await _rate(client, plain, task, first, size),
        await _rate(client, cluster, task, first, size),
    )


async def _rate(client: httpx.AsyncClient, cluster: Cluster, task: _Task, first: int, size: _Size) -> float:
    started = time.perf_counter()
    asked = (_ask(client, cluster, task, number, size.tokens) for number in range(first, first + size.users))
    tokens = sum(await asyncio.gather(*asked))
    return tokens / (time.perf_counter() - started)


async def _ask(client: httpx.AsyncClient, cluster: Cluster, task: _Task, number: int, tokens: int) -> int:
    """Returns the tokens of the answer. Errors: httpx.HTTPError."""
    body = {
        "model": _MODEL,
        "prompt": task.prompt(number),
        "max_tokens": tokens,
        "temperature": task.temperature,
        "ignore_eos": True,
    }
    answer = await client.post(f"{cluster.url}/v1/completions", json=body)
    answer.raise_for_status()
    return int(answer.json()["usage"]["completion_tokens"])


def _cells(pairs: list[tuple[float, float]]) -> Iterator[str]:
    """The ratio is that of neighbours in time."""
    yield f"{statistics.median(one for one, _ in pairs):.1f}"
    yield f"{statistics.median(one for _, one in pairs):.1f}"
    yield Figure.of([fast / slow for slow, fast in pairs]).text(2)


@dataclass(frozen=True, slots=True)
class _Counted:
    """What the decode engine has counted since its start. is_on: steps of some batch size propose."""

    verifications: float
    proposed_tokens: float
    accepted_tokens: float
    is_on: bool

    @classmethod
    def of(cls, cluster: Cluster) -> "_Counted":
        samples = cluster.metrics("decode-0")

        def total(name: str) -> float:
            return sum(
                value for sample, value in samples.items() if sample.startswith(f"worker_speculation_{name}")
            )

        return cls(
            total("verifications_total"),
            total("proposed_tokens_total"),
            total("accepted_tokens_total"),
            total("on{") > 0,
        )

    def since(self, before: "_Counted") -> tuple[str, str, str]:
        verified = self.verifications - before.verifications
        proposed = self.proposed_tokens - before.proposed_tokens
        accepted = self.accepted_tokens - before.accepted_tokens
        return (
            f"{accepted / proposed:.0%} of {proposed:.0f}" if proposed else "-",
            f"{1 + accepted / verified:.2f}" if verified else "-",
            "on" if self.is_on else "off",
        )
