"""What vLLM prepares when a request first needs it, prepared before the engine says that it is ready.

Grammars need a table of all tokens; on a GPU, and where the model is compiled, so do parts of sampling need
code that is compiled on first use. Requests that run beside the first such request would stop meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreRequest, FinishReason

from llmserve.core.errors import StartFailed

_log = logging.getLogger(__name__)

_PROMPT = tuple(range(1, 9))  # with the answer less than a block, so that nothing of it stays in a cache
_TOKENS = 3
_SECONDS = 600.0  # the first time, code is compiled


async def warm_up(core: Any, grammar_backend: str) -> None:
    """core: an AsyncMPClient whose outputs nobody else takes yet. One that refuses a request (a model may
    not know grammars) is not the less ready. Errors: StartFailed, EngineDeadError."""
    began = time.monotonic()
    requests = {f"warm-up-{index}": params for index, params in enumerate(_kinds(grammar_backend))}
    try:
        async with asyncio.timeout(_SECONDS):
            for name, params in requests.items():
                await core.add_request_async(_request(name, params))
            await _until_ended(core, set(requests))
    except TimeoutError:
        raise StartFailed(f"vLLM did not answer its first requests within {_SECONDS:.0f} s") from None
    _log.info("the engine answered %d first requests in %.1f s", len(requests), time.monotonic() - began)


def _kinds(grammar_backend: str) -> Iterator[SamplingParams]:
    """Yields what makes vLLM take each of its ways through sampling, alone and together."""
    grammar = StructuredOutputsParams(json='{"type": "object"}')
    grammar._backend = grammar_backend
    yield SamplingParams(temperature=0.0, **_common())
    yield SamplingParams(temperature=1.0, **_common())
    yield SamplingParams(temperature=0.0, structured_outputs=grammar, **_common())
    yield SamplingParams(temperature=0.0, logprobs=0, prompt_logprobs=0, **_common())
    yield SamplingParams(
        temperature=1.0,
        seed=1,
        top_k=4,
        top_p=0.9,
        min_p=0.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        repetition_penalty=1.1,
        logit_bias={1: 1.0},
        allowed_token_ids=list(_PROMPT),
        logprobs=2,
        prompt_logprobs=2,
        **_common(),
    )


def _common() -> dict[str, Any]:
    return {"max_tokens": _TOKENS, "min_tokens": _TOKENS, "ignore_eos": True, "detokenize": False}


def _request(name: str, params: SamplingParams) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=list(_PROMPT),
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=name,
        data_parallel_rank=None,
    )


async def _until_ended(core: Any, names: set[str]) -> None:
    while names:
        outputs = await core.get_output_async()
        for output in outputs.outputs:
            if output.finish_reason is None:
                continue
            names.discard(output.request_id)
            if output.finish_reason is FinishReason.ERROR:
                _log.info("the engine cannot serve its first request %s", output.request_id)
