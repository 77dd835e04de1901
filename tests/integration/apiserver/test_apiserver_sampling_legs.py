"""What engines are asked, and that vLLM's sampling parameters cross the wire whole."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from llmserve.apiserver.engine.sampling import PromptLegs, SamplingLegs
from llmserve.apiserver.request.context import LegContext
from llmserve.core.ids import RequestId, TenantId
from llmserve.core.request import EngineRequest

PROMPT = [5, 6, 7]
CONTEXT = LegContext(RequestId("r"), "salt", TenantId("red"))
TICKET = {"do_remote_prefill": True}


def legs(max_model_len: int = 100, **params: Any) -> SamplingLegs:
    return SamplingLegs(PROMPT, SamplingParams(**params), max_model_len, priority=3)


def sent(request: EngineRequest) -> SamplingParams:
    params: SamplingParams = msgspec.msgpack.decode(request.sampling_params, type=SamplingParams)
    return params


def test_parameters_survive_the_wire_with_what_vllm_has_added_to_them() -> None:
    grammar = StructuredOutputsParams(json={"type": "object"})
    grammar._backend = "xgrammar"
    params = SamplingParams(
        temperature=0.5,
        top_k=3,
        stop=["x"],
        stop_token_ids=[9],
        bad_words=["no"],
        structured_outputs=grammar,
        logit_bias={4: 1.5},
        logprobs=2,
        max_tokens=8,
        min_tokens=2,
        seed=11,
    )
    params._bad_words_token_ids = [[1, 2]]
    params._eos_token_id = 2
    params._all_stop_token_ids = {2, 9}
    crossed = sent(SamplingLegs(PROMPT, params, 100).whole(CONTEXT))
    for field in SamplingParams.__struct_fields__:
        assert getattr(crossed, field) == getattr(params, field), field


def test_an_exact_request_is_split_after_its_first_token() -> None:
    split = legs(max_tokens=10, min_tokens=4)
    prefill = split.prefill(CONTEXT)
    assert (prefill.limits.max_tokens, prefill.limits.min_tokens) == (1, 1)
    assert prefill.kv_transfer_params == {"do_remote_decode": True}
    decode = split.decode(replace(CONTEXT, sent=[8]), TICKET)
    assert list(decode.prompt_token_ids) == [*PROMPT, 8]
    assert (decode.limits.max_tokens, decode.limits.min_tokens) == (9, 3)
    assert decode.kv_transfer_params == TICKET
    assert (decode.priority, decode.cache_salt, decode.tenant) == (3, "salt", "red")
    assert (sent(decode).max_tokens, sent(decode).min_tokens) == (9, 3)


def test_one_that_is_not_is_only_prefilled_by_a_leg_that_cannot_stop() -> None:
    split = legs(max_tokens=10, presence_penalty=1.0, stop_token_ids=[7], prompt_logprobs=2)
    prefill = split.prefill(CONTEXT)
    assert prefill.limits.stop_token_ids == frozenset()
    probe = sent(prefill)
    assert (probe.presence_penalty, probe.stop_token_ids, probe.ignore_eos) == (0.0, [], True)
    assert (probe.max_tokens, probe.prompt_logprobs) == (1, 2)
    decode = split.decode(CONTEXT, TICKET)
    assert (list(decode.prompt_token_ids), decode.limits.max_tokens) == (PROMPT, 10)
    assert sent(decode).presence_penalty == 1.0


def test_the_prompt_of_several_choices_is_brought_by_legs_of_which_nobody_sees_a_token() -> None:
    prompt = PromptLegs(
        legs(max_tokens=10, n=4, temperature=1.0, seed=3, stop_token_ids=[7], prompt_logprobs=2)
    )
    prefill, decode = prompt.prefill(CONTEXT), prompt.decode(CONTEXT, TICKET)
    assert (list(prefill.prompt_token_ids), list(decode.prompt_token_ids)) == (PROMPT, PROMPT)
    assert (prefill.kv_transfer_params, decode.kv_transfer_params) == ({"do_remote_decode": True}, TICKET)
    for request, logprobs in ((prefill, 2), (decode, None)):
        params = sent(request)
        assert (params.n, params.max_tokens, params.ignore_eos, params.seed) == (1, 1, True, None)
        assert params.prompt_logprobs == logprobs
        assert request.limits.stop_token_ids == frozenset()
    assert prompt.decode_ahead(CONTEXT, TICKET) == decode


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_single_token_is_drawn_by_prefill_with_all_its_parameters(penalty: float) -> None:
    request = legs(max_tokens=1, presence_penalty=penalty, logprobs=3).prefill(CONTEXT)
    assert request.kv_transfer_params is None
    assert (sent(request).presence_penalty, sent(request).logprobs) == (penalty, 3)


@pytest.mark.parametrize("asked", [None, 50])
def test_the_model_s_length_bounds_the_output(asked: int | None) -> None:
    assert legs(max_model_len=8, max_tokens=asked).remaining_tokens([]) == 5


def test_prompt_logprobs_are_computed_once() -> None:
    split = legs(max_tokens=10, prompt_logprobs=1)
    assert sent(split.prefill(CONTEXT)).prompt_logprobs == 1
    decode = sent(split.decode(CONTEXT, TICKET))
    assert decode.prompt_logprobs is None
    assert decode.skip_reading_prefix_cache is False
    again = replace(CONTEXT, sent=[8])
    assert sent(split.prefill(again)).prompt_logprobs is None


def test_stop_tokens_are_named_for_engines_that_do_not_read_the_parameters() -> None:
    params = SamplingParams(stop_token_ids=[9], max_tokens=5)
    params.update_from_generation_config({"eos_token_id": [2, 3]}, eos_token_id=2)
    assert SamplingLegs(PROMPT, params, 100).whole(CONTEXT).limits.stop_token_ids == {2, 3, 9}
