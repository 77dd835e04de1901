"""What vLLM's rejection sampler draws on this CPU, with our repairs: whatever was proposed, tokens are
distributed as the model alone would draw them. Without an engine: the model is a row of logits."""

import warnings
from typing import Any

import pytest
import torch
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from llmserve.engines.connector import verifying
from tests.support.chi_square import is_plausible

VOCAB, REQUESTS = 12, 4000
LOGITS = torch.linspace(-1.5, 1.5, VOCAB)


@pytest.fixture(scope="module", autouse=True)
def repaired() -> Any:
    """As in the process of an engine, whose worker has registered its ops."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the registration looks at all modules
        current_platform.register_triton_kernel_overrides()
        for name in ("expand_batch_to_tokens", "apply_sampling_constraints"):
            patch.setattr(rejection_sampler, name, getattr(rejection_sampler, name))
        verifying.install("cpu", rejection_sampler)
        yield


def _drawn(proposals: list[int], *, temperature: float, top_k: int | None) -> list[list[int]]:
    """Returns what each of many requests gets, for which these tokens were proposed."""
    none = torch.zeros(REQUESTS)
    sampling = SamplingMetadata(
        temperature=torch.full((REQUESTS,), temperature),
        all_greedy=False,
        all_random=True,
        top_p=None,
        top_k=None if top_k is None else torch.full((REQUESTS,), top_k, dtype=torch.int32),
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=none,
        presence_penalties=none,
        repetition_penalties=none,
        output_token_ids=[[] for _ in range(REQUESTS)],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
        spec_token_ids=[proposals] * REQUESTS,
    )
    metadata = SpecDecodeMetadata.make_dummy([proposals] * REQUESTS, torch.device("cpu"))
    torch.manual_seed(5)
    output = rejection_sampler.RejectionSampler(Sampler())(metadata, None, LOGITS[None].clone(), sampling)
    rows: list[list[int]] = output.sampled_token_ids.tolist()
    return [[token for token in row if token >= 0] for row in rows]


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("temperature", [0.6, 1.3])
@pytest.mark.parametrize("proposals", [[], [11], [3, 9], [10, 11, 10]])
def test_tokens_are_distributed_as_the_model_draws_them(
    proposals: list[int], temperature: float, top_k: int | None
) -> None:
    drawn = _drawn(proposals, temperature=temperature, top_k=top_k)
    logits = LOGITS / temperature
    if top_k is not None:
        logits[: VOCAB - top_k] = float("-inf")
    chances = logits.softmax(-1).tolist()
    for place in range(len(proposals) + 1):
        there = [row[place] for row in drawn if len(row) > place]
        if len(there) > 200:
            assert is_plausible(there, chances), place
    other = (LOGITS / (2 * temperature)).softmax(-1).tolist()
    assert not is_plausible([row[0] for row in drawn], other), "the test sees nothing"
    accepted = sum(row[:1] == proposals[:1] for row in drawn)
    assert not proposals or abs(accepted / REQUESTS - chances[proposals[0]]) < 0.04
