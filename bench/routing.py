"""Where requests go, and what that saves: KV-aware routing against the baselines, on the same trace.

The router's own controller with simulated engines in virtual time (simulation.py), so the figures depend
on the seed and not on this machine.
"""

import random
import statistics
from typing import Literal

from bench.simulation import Arrival, Engines, Result, Simulation
from bench.table import markdown
from llmserve.core.outcome import WorkerRole
from llmserve.router.settings import RouterSettings

_SYSTEM_PROMPTS = 20
_SYSTEM_TOKENS = 2048
_WORKERS = 4  # of each role
# A worker's cache holds the prompts of some tenants, not of all: 20 of them take 2,560 blocks.
_ENGINES = Engines(_WORKERS, _WORKERS, blocks=1400)
_REQUESTS = 1000

Routing = Literal["kv_aware", "least_loaded", "round_robin"]


def shared_prefixes(
    requests: int,
    per_second: float,
    *,
    prompts: int = _SYSTEM_PROMPTS,
    tokens: int = _SYSTEM_TOKENS,
    seed: int = 7,
) -> list[Arrival]:
    """Each request is one of the system prompts, and 32 to 256 tokens of its user; answers of 16 to 128."""
    rng, at, arrivals = random.Random(seed), 0.0, []
    systems = [[rng.randrange(32000) for _ in range(tokens)] for _ in range(prompts)]
    for _ in range(requests):
        at += rng.expovariate(per_second)
        user = [rng.randrange(32000) for _ in range(rng.randint(32, 256))]
        arrivals.append(Arrival(at, [*rng.choice(systems), *user], rng.randint(16, 128)))
    return arrivals


def run() -> str:
    headings = (
        *("requests/s", "routing", "prompt tokens computed", "first token p50 s", "p99 s"),
        *("on one worker", "largest share of prefill"),
    )
    rows = [row for rate in (8.0, 16.0) for row in _rows(rate)]
    return markdown(headings, rows)


def _rows(rate: float) -> list[tuple[object, ...]]:
    arrivals = shared_prefixes(_REQUESTS, rate)
    routings: tuple[Routing, ...] = ("round_robin", "least_loaded", "kv_aware")
    return [_row(f"{rate:g}", routing, _simulated(routing, arrivals)) for routing in routings]


def _simulated(routing: Routing, arrivals: list[Arrival]) -> Result:
    return Simulation(_ENGINES, RouterSettings(routing=routing, expiry_seconds=1e9)).run(arrivals)


def _row(rate: str, routing: Routing, result: Result) -> tuple[object, ...]:
    times = sorted(result.first_token_seconds)
    return (
        rate,
        routing,
        f"{result.computed_tokens / result.prompt_tokens:.1%}",
        f"{statistics.median(times):.3f}",
        f"{times[int(len(times) * 0.99)]:.3f}",
        f"{result.single / len(times):.1%}",
        f"{result.largest_share(WorkerRole.PREFILL, _WORKERS):.2f} x fair",
    )
