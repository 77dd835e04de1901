"""A vLLM engine that pools: its embeddings are those of the model, whatever is computed beside them."""

import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from llmserve.core.errors import InvalidRequest, ManifestError
from llmserve.core.ids import RequestId, TenantId
from llmserve.core.request import EngineOutput, EngineRequest, SamplingLimits
from llmserve.engines.base import Engine
from tests.conformance.conftest import VllmKit
from tests.conformance.engine_pair import SALT

pytestmark = [
    pytest.mark.real_vllm,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

PROMPTS = [list(range(5, 5 + length)) for length in (1, 3, 128, 129, 700)]
names = (RequestId(f"pooled-{number}") for number in itertools.count())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(vllm_kit: VllmKit) -> AsyncIterator[Engine]:
    engine = vllm_kit.make_pooling("embed")
    await engine.start()
    yield engine
    await engine.aclose()


def request(prompt: Sequence[int], **fields: Any) -> EngineRequest:
    from vllm.pooling_params import PoolingParams

    params = msgspec.msgpack.encode(PoolingParams(task="embed", use_activation=True))
    given = {"pooling_params": params, "cache_salt": SALT, "tenant": TenantId("red"), **fields}
    return EngineRequest(next(names), prompt, SamplingLimits(1), **given)


async def embed(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[EngineOutput]:
    """All at once."""
    requests = [request(prompt) for prompt in prompts]
    for one in requests:
        await engine.add(one)
    ended: dict[str, EngineOutput] = {}
    while len(ended) < len(requests):
        ended |= {output.request_id: output for output in await engine.next_outputs()}
    return [ended[one.request_id] for one in requests]


def values_of(output: EngineOutput) -> Any:
    assert output.pooled is not None
    assert output.token_ids == []
    return np.frombuffer(output.pooled.values, "<f4").reshape(output.pooled.shape)


async def test_embeddings_are_the_model_s_in_a_batch_and_from_the_cache(
    engine: Engine, vllm_kit: VllmKit
) -> None:
    import torch
    from transformers import AutoModel

    together = await embed(engine, PROMPTS)
    again = await embed(engine, PROMPTS[-1:])
    assert again[0].prefill_stats is not None
    assert again[0].prefill_stats.local_cached_tokens > 0
    model = AutoModel.from_pretrained(vllm_kit.model_dir, dtype=torch.float32)
    for prompt, output in zip([*PROMPTS, PROMPTS[-1]], [*together, *again], strict=True):
        with torch.inference_mode():
            last = model(torch.tensor([prompt])).last_hidden_state[0, -1].numpy()
        assert values_of(output).shape == (576,)
        np.testing.assert_allclose(values_of(output), last / np.linalg.norm(last), atol=1e-5)


async def test_a_request_for_tokens_is_refused_and_harms_nobody(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="is to embed"):
        await engine.add(request([5, 6, 7], pooling_params=b""))
    assert len(await embed(engine, PROMPTS[:1])) == 1


async def test_a_model_that_cannot_do_its_task_does_not_start(vllm_kit: VllmKit) -> None:
    engine = vllm_kit.make_pooling("classify")
    try:
        with pytest.raises(ManifestError, match=r"engine\.task: the model cannot classify, but .*embed"):
            await engine.start()
    finally:
        await engine.aclose()
