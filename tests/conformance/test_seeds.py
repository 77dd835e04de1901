"""A request with a seed whose prompt is computed in pieces, on real vLLM: answered, and each time alike."""

import asyncio

import msgspec
import pytest
from vllm.sampling_params import SamplingParams

from llmserve.core.ids import RequestId
from llmserve.core.outcome import WorkerRole
from llmserve.core.request import EngineOutput, EngineRequest, SamplingLimits
from llmserve.engines.base import Engine
from tests.conformance.conftest import VllmKit

PROMPT, ANSWER, PIECE = 300, 6, 64


@pytest.mark.real_vllm
@pytest.mark.timeout(300)
async def test_a_seeded_prompt_in_pieces(vllm_kit: VllmKit) -> None:
    engine = vllm_kit.make(WorkerRole.AGGREGATED, "seeds", long_prompt_tokens=PIECE)
    await engine.start()
    try:
        answers = [await _sampled(engine, f"r{number}", f"salt {number}") for number in range(2)]
        assert len(answers[0]) == ANSWER
        assert answers[0] == answers[1]
    finally:
        await engine.aclose()


async def _sampled(engine: Engine, name: str, salt: str) -> list[int]:
    """Of the same prompt and seed, under a salt that no cache knows."""
    params = SamplingParams(temperature=1.0, seed=11, max_tokens=ANSWER, ignore_eos=True, detokenize=False)
    request = EngineRequest(
        RequestId(name),
        [100 + number % 700 for number in range(PROMPT)],
        SamplingLimits(ANSWER, ANSWER),
        sampling_params=msgspec.msgpack.encode(params),
        cache_salt=salt,
    )
    await engine.add(request)
    outputs: list[EngineOutput] = []
    async with asyncio.timeout(120):
        while not outputs or outputs[-1].finish_reason is None:
            outputs += await engine.next_outputs()
    return [token for output in outputs for token in output.token_ids]
