"""What `engine.min_decode_slots` does: in virtual time, on engines that compute prompts and decode.

Prompts come in bursts. Together they make one long step, and every request that decodes waits for it; with
places kept for decoding they are computed a few at a time, and wait instead.
"""

import random
from collections.abc import Iterator

from bench.table import markdown
from llmserve.config.schema import Manifest
from llmserve.simulate.report import Goals
from llmserve.simulate.run import Simulation
from llmserve.simulate.shape import ClusterShape, Overrides
from llmserve.traces import TracedRequest

_PLACES, _KEPT = 16, (0, 8, 12, 15)
_BURSTS, _BURST_SECONDS, _PROMPTS = 60, 1.0, 5
_PROMPT_TOKENS, _ANSWER_TOKENS = (100, 500), (40, 120)


def run() -> str:
    headings = ("min_decode_slots", "first token p50, p99 s", "between tokens p50, p99 ms", "requests/s")
    return markdown(headings, [_row(kept) for kept in _KEPT])


def _row(kept: int) -> tuple[str, ...]:
    simulation = Simulation(ClusterShape.of(_manifest(kept), Overrides()), list(_requests()))
    simulation.run()
    simulation.check_integrity()
    report = simulation.report(Goals())
    return (
        f"{kept} of {_PLACES}",
        f"{report.first_token.p50:.2f}, {report.first_token.p99:.2f}",
        f"{1000 * report.gaps.p50:.0f}, {1000 * report.gaps.p99:.0f}",
        f"{report.requests_per_second:.1f}",
    )


def _manifest(kept: int) -> Manifest:
    sim = {
        "prefill_tokens_per_second": 8000,
        "decode_step_seconds": 0.02,
        "decode_seconds_per_sequence": 0.0005,
    }
    engine = {"kind": "sim", "max_decode_concurrency": _PLACES, "min_decode_slots": kept, "sim": sim}
    return Manifest.model_validate(
        {
            "kind": "LLMServe",
            "models": {"primary": {"source": "dir:/nowhere", "name": "m"}},
            "engine": engine,
            "deployment": {"disaggregated": False},
        }
    )


def _requests() -> Iterator[TracedRequest]:
    draw = random.Random(1)
    for burst in range(_BURSTS):
        for _ in range(_PROMPTS):
            prompt, answer = draw.randint(*_PROMPT_TOKENS), draw.randint(*_ANSWER_TOKENS)
            yield TracedRequest(burst * _BURST_SECONDS, prompt, answer)
