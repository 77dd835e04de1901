"""A real engine with a real model proposes tokens while it copies, and none while it writes at random."""

import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import msgspec
import pytest
import pytest_asyncio

from llmserve.config.schema import Speculation
from llmserve.core.ids import RequestId
from llmserve.core.outcome import WorkerRole
from llmserve.core.request import EngineRequest, SamplingLimits
from llmserve.core.stats import BatchGain, SpeculationReport
from tests.conformance.conftest import VllmKit
from tests.conformance.engine_pair import SALT, Harness, numbers

pytestmark = [
    pytest.mark.real_vllm,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

WORDS = "river stone market clock sailor window garden letter copper winter basket candle engine silver"
PROPOSED = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def harness(vllm_kit: VllmKit) -> AsyncIterator[Harness]:
    """It looks up single tokens, so that it proposes at each step of a text of few words."""
    from llmserve.engines.vllm.engine import VllmEngine

    speculation = Speculation(method="ngram", tokens=PROPOSED, lookup_min=1)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = "1"
    spec = replace(vllm_kit.spec(WorkerRole.AGGREGATED, "adaptive"), speculation=speculation)
    harness = await Harness.open(VllmEngine(spec), 10.0)
    yield harness
    await harness.close()


@pytest.fixture(scope="module")
def encode(vllm_kit: VllmKit) -> Callable[[str], list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(vllm_kit.model_dir)
    return lambda text: list(tokenizer.encode(text))


async def _write(harness: Harness, prompt: list[int], tokens: int, temperature: float) -> SpeculationReport:
    """Returns what the engine reports after an answer of so many tokens."""
    from vllm.sampling_params import SamplingParams

    name = RequestId(f"r{next(numbers)}")
    params = SamplingParams(temperature=temperature, max_tokens=tokens, ignore_eos=True, detokenize=False)
    limits = SamplingLimits(tokens)
    await harness.engine.add(
        EngineRequest(name, prompt, limits, msgspec.msgpack.encode(params), cache_salt=SALT)
    )
    await harness.result(name)
    report = (await harness.engine.load()).speculation
    assert report is not None
    return report


def _alone(report: SpeculationReport) -> BatchGain:
    """Of steps with one request."""
    return next(one for one in report.gains if one.batch == 1)


async def test_it_proposes_while_that_pays(harness: Harness, encode: Callable[[str], list[int]]) -> None:
    draw = random.Random(5)
    copied = encode(f"{WORDS} " * 12)
    for _ in range(3):
        report = await _write(harness, copied, 150, temperature=0.0)
    copying = _alone(report)
    assert report.mean_length > 3
    assert copying.drafts
    assert copying.gain > 1.2
    for _ in range(3):
        report = await _write(
            harness, encode(" ".join(draw.choices(WORDS.split(), k=100))), 100, temperature=1.5
        )
    written = _alone(report)
    assert not written.drafts
    assert written.gain < 1
