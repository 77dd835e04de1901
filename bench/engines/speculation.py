"""Speculative decoding through a cluster, beside the same cluster without it.

A request writes at random, or copies a text that its prompt repeats. Both clusters run at the same time, and
are asked in turn, so that whatever else the machine does slows both. Engines switch proposals off that do not
pay. The first answer shows what it costs an engine to find that out; then come answers that are not
counted, until the switch knows the text, as in a server that has run for long; then those that are.

In quiet on two cores it takes about eight minutes.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
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
_Pair = tuple[float, float]  # tokens per second without speculation, and with it


@dataclass(frozen=True, slots=True)
class _Task:
    """repeats: of the prompt's text. speed, acceptance: what it must reach, as a multiple of the tokens per
    second without speculation, and as a part of the proposals."""

    name: str
    repeats: int
    temperature: float
    speed: float | None = None
    acceptance: float | None = None

    def prompt(self, number: int) -> str:
        draw = random.Random(number)
        return " ".join(draw.choices(_WORDS.split(), k=40) * self.repeats)


# By method, in this order: an engine comes back on sooner than it is sure that it should be off.
_TASKS: Mapping[str, Sequence[_Task]] = {
    "ngram": (_Task("random", 1, 1.0, speed=0.97), _Task("copying", 4, 0.0, speed=1.3)),
    "draft = target": (_Task("greedy", 1, 0.0, acceptance=0.95), _Task("random", 1, 1.0)),
}


@dataclass(frozen=True, slots=True)
class _Size:
    """rounds, warm: answers of each cluster that are counted, and before them. users: requests at the same
    time. tokens: of an answer."""

    rounds: int
    warm: int
    users: int
    tokens: int


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=4, help="of each text and cluster (default: 4)")
    parser.add_argument("--warm", type=int, default=2, help="answers before those that count (default: 2)")
    parser.add_argument("--users", type=int, default=1, help="at the same time (default: 1)")
    parser.add_argument("--tokens", type=int, default=160, help="of an answer (default: 160)")
    parser.add_argument("--proposed", type=int, default=4, help="tokens in a step (default: 4)")


def run(rounds: int, warm: int, users: int, tokens: int, proposed: int) -> str:
    size = _Size(rounds, warm, users, tokens)
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
        "text",
        "tokens/s without",
        "with",
        "times as many",
        "goal",
        "the first answer",
        "accepted",
        "goal",
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
        for one in (plain, cluster):
            await _ask(client, one, _TASKS[name][0], 0, 1)  # what an engine prepares at its first request
        for task in _TASKS[name]:
            before = _Counted.of(cluster)
            first = await _pair(client, plain, cluster, task, size, 0)
            for at in range(1, 1 + size.warm):
                await _rate(client, cluster, task, 1 + at * size.users, size)
            pairs = [
                await _pair(client, plain, cluster, task, size, 1 + size.warm + at)
                for at in range(size.rounds)
            ]
            print(f"{name}, {task.name}: {first}, {pairs}", file=sys.stderr, flush=True)
            await asyncio.sleep(_COUNTED_SECONDS)
            rows.append((name, task.name, *_speeds(task, first, pairs), *_proposals(task, before, cluster)))
    return rows


async def _pair(
    client: httpx.AsyncClient, plain: Cluster, cluster: Cluster, task: _Task, size: _Size, at: int
) -> _Pair:
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


def _speeds(task: _Task, first: _Pair, pairs: Sequence[_Pair]) -> Iterator[str]:
    """The ratio is that of neighbours in time."""
    yield f"{statistics.median(one for one, _ in pairs):.1f}"
    yield f"{statistics.median(one for _, one in pairs):.1f}"
    yield Figure.of([fast / slow for slow, fast in pairs]).text(2)
    yield f"≥ {task.speed}" if task.speed else "-"
    yield f"{first[1] / first[0]:.2f}"


def _proposals(task: _Task, before: "_Counted", cluster: Cluster) -> Iterator[str]:
    """Since the first answer of a text."""
    now = _Counted.of(cluster)
    verified = now.verifications - before.verifications
    proposed = now.proposed_tokens - before.proposed_tokens
    accepted = now.accepted_tokens - before.accepted_tokens
    yield f"{accepted / proposed:.0%} of {proposed:.0f}" if proposed else "-"
    yield f"≥ {task.acceptance:.0%}" if task.acceptance else "-"
    yield f"{1 + accepted / verified:.2f}" if verified else "-"
    yield "on" if now.is_on else "off"


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
