"""Shares of two tenants whose adapters do not all have slots, in `llmserve simulate`'s cluster.

Both ask for far more than there is: five of six requests are for one of a few adapters, drawn evenly. The
figures depend on the seed and not on this machine.
"""

import random
import statistics
from dataclasses import replace

from bench.table import markdown
from llmserve.config.schema import Manifest
from llmserve.core.adapters import BASE_MODEL
from llmserve.core.ids import TenantId
from llmserve.simulate.adapters import with_adapters
from llmserve.simulate.mix import RequestKind, RequestMix
from llmserve.simulate.report import Goals, SimReport
from llmserve.simulate.run import Simulation
from llmserve.simulate.shape import ClusterShape, Overrides

GOLD, BASIC = TenantId("gold"), TenantId("basic")
WEIGHT = 2.0  # of gold; basic has 1
_BASE_PART = 1 / 6
_SECONDS, _PER_SECOND = 60.0, 50.0
_SEEDS = range(1, 6)
_SPEC = {
    "kind": "LLMServe",
    "models": {"primary": {"source": "dir:/nowhere", "name": "m"}},
    "deployment": {"replicas": {"prefill": 1, "decode": 2}},
    "engine": {
        "kind": "sim",
        "sim": {
            "prefill_tokens_per_second": 12_000,
            "decode_step_seconds": 0.012,
            "decode_seconds_per_sequence": 0.0001,
            "block_size_tokens": 16,
            "blocks": 8192,
        },
    },
    "scheduling": {"weights": [{"tenant": GOLD, "weight": WEIGHT}], "max_queued_requests": 10},
    "budgets": {"max_requests_in_flight": 10},
}


def simulated(*, slots: int, adapters: int, seed: int, seconds: float = _SECONDS) -> SimReport:
    """Prompts of 200 to 600 tokens, answers of 20 to 60."""
    shape = ClusterShape.of(Manifest.model_validate(_SPEC), Overrides())
    rng = random.Random(seed)
    tenants = [(GOLD, 1.0), (BASIC, 1.0)]
    mix = RequestMix([(RequestKind(400, 40), 1.0)], tenants, _PER_SECOND, seconds)
    requests = [
        replace(one, adapter=BASE_MODEL) if rng.random() < _BASE_PART else one
        for one in with_adapters(mix.requests(rng), adapters, 0.0, rng)
    ]
    simulation = Simulation(
        replace(shape, adapters=replace(shape.adapters, slots=slots)), requests, seed=seed
    )
    simulation.run()
    simulation.check_integrity()
    return simulation.report(Goals())


def ratio(report: SimReport) -> float:
    """Tokens of gold for each of basic, in the seconds in which requests of both waited."""
    shares = {line.tenant: line.share for line in report.tenants}
    return shares[GOLD] / shares[BASIC]


def run() -> str:
    headings = ("slots", "adapters", "tokens of weight 2 for each of weight 1", "requests/s", "queue p99 s")
    rows = [_row(slots, adapters) for slots, adapters in ((8, 5), (2, 5), (2, 20), (1, 5))]
    return markdown(headings, rows)


def _row(slots: int, adapters: int) -> tuple[object, ...]:
    """Medians over the seeds, with the least and the most."""
    reports = [simulated(slots=slots, adapters=adapters, seed=seed) for seed in _SEEDS]
    values = (
        [ratio(report) for report in reports],
        [report.requests_per_second for report in reports],
        [report.queue.p99 for report in reports],
    )
    return slots, adapters, *(f"{statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in values)
