"""A real engine with a real model measures that proposals pay while it copies, and goes on proposing."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from llmserve.config.schema import Speculation
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineRequest, SamplingLimits, WorkerRole
from llmserve.core.stats import BatchGain, SpeculationReport
from tests.conformance.conftest import VllmKit
from tests.conformance.engine_pair import SALT, Harness, finished, numbers

pytestmark = [
    pytest.mark.real_vllm,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

WORDS = "river stone market clock sailor window garden letter copper winter basket candle engine silver"
PROPOSED = 4
ANSWER, ANSWERS, ANSWER_SECONDS = 40, 10, 200.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def harness(vllm_kit: VllmKit) -> AsyncIterator[Harness]:
    """It looks up single tokens, so that it proposes at each step of a text of few words."""
    from llmserve.engines.vllm.engine import VllmEngine

    speculation = Speculation(method="ngram", tokens=PROPOSED, lookup_min=1)
    spec = replace(vllm_kit.spec(WorkerRole.AGGREGATED, "adaptive"), speculation=speculation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")
        harness = await Harness.open(VllmEngine(spec), 10.0)
        yield harness
        await harness.close()


@pytest.fixture(scope="module")
def encode(vllm_kit: VllmKit) -> Callable[[str], list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(vllm_kit.model_dir)
    return lambda text: list(tokenizer.encode(text))


async def _write(harness: Harness, prompt: list[int], **sampling: Any) -> SpeculationReport:
    """Returns what the engine reports after an answer. sampling: of vLLM's SamplingParams."""
    from vllm.sampling_params import SamplingParams

    name = RequestId(f"r{next(numbers)}")
    params = SamplingParams(max_tokens=ANSWER, ignore_eos=True, detokenize=False, **sampling)
    limits = SamplingLimits(ANSWER)
    await harness.engine.add(
        EngineRequest(name, prompt, limits, msgspec.msgpack.encode(params), cache_salt=SALT)
    )
    await harness.until(lambda: finished(harness.outputs.get(name, ())), ANSWER_SECONDS)
    report = (await harness.engine.load()).speculation
    assert report is not None
    return report


def _alone(report: SpeculationReport) -> BatchGain:
    """Of steps with one request."""
    return next(one for one in report.gains if one.batch == 1)


async def test_it_proposes_while_that_pays(harness: Harness, encode: Callable[[str], list[int]]) -> None:
    copied = encode(f"{WORDS} " * 12)
    for _ in range(ANSWERS):
        report = await _write(harness, copied, temperature=0.0)
    copying = _alone(report)
    assert report.mean_length > 3
    assert copying.proposes
    assert copying.gain > 1.2
