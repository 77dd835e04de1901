"""What an engine is asked before it says that it is ready."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine import EngineCoreRequest, FinishReason

from llmserve.core.errors import StartFailed
from llmserve.engines.vllm import warm_up as warming
from llmserve.engines.vllm.warm_up import warm_up


class Core:
    """Ends each request with `reason`; None: never."""

    def __init__(self, reason: FinishReason | None) -> None:
        self._reason = reason
        self.requests: list[EngineCoreRequest] = []
        self._told = 0

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        self.requests.append(request)

    async def get_output_async(self) -> Any:
        if self._reason is None:
            await asyncio.Event().wait()
        request = self.requests[self._told]
        self._told += 1
        output = SimpleNamespace(request_id=request.request_id, finish_reason=self._reason)
        return SimpleNamespace(outputs=[output])


async def test_every_way_through_sampling_is_taken_once() -> None:
    core = Core(FinishReason.LENGTH)
    await warm_up(core, "xgrammar")
    params = [request.sampling_params for request in core.requests]
    assert {None, 0, 2} == {one.logprobs for one in params} == {one.prompt_logprobs for one in params}
    assert {0.0, 1.0} == {one.temperature for one in params}
    assert [one.structured_outputs._backend for one in params if one.structured_outputs] == ["xgrammar"]
    for attribute in ("seed", "logit_bias", "allowed_token_ids"):
        assert any(getattr(one, attribute) for one in params), attribute
    for attribute in ("top_k", "min_p", "presence_penalty", "frequency_penalty"):
        assert any(getattr(one, attribute) > 0 for one in params), attribute


async def test_nothing_of_it_fills_a_block() -> None:
    core = Core(FinishReason.LENGTH)
    await warm_up(core, "guidance")
    longest = max(len(one.prompt_token_ids) + one.sampling_params.max_tokens for one in core.requests)
    assert longest < 16, "the smallest block: it would stay in the prefix cache, and be reported"


async def test_a_request_that_the_model_cannot_serve_does_not_stop_the_start() -> None:
    await warm_up(Core(FinishReason.ERROR), "xgrammar")


async def test_an_engine_that_never_answers_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "_SECONDS", 0.01)
    with pytest.raises(StartFailed, match="did not answer its first requests"):
        await warm_up(Core(None), "xgrammar")
