"""What each engine is asked to do for a request, given vLLM's sampling parameters."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from vllm.sampling_params import SamplingParams

from llmserve.apiserver.request.context import HAND_OVER, LegContext
from llmserve.core.request import EngineRequest, SamplingLimits


class SamplingLegs:
    """params: already verified and completed by vLLM's InputProcessor."""

    def __init__(
        self, prompt: Sequence[int], params: SamplingParams, max_model_len: int, priority: int = 0
    ) -> None:
        self.prompt, self.priority = prompt, priority
        self._params = params
        room = max_model_len - len(prompt)
        self._max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        self.exact = not inexact_because(params)
        self.stuck = stuck_because(params)

    def remaining_tokens(self, sent: Sequence[int]) -> int:
        return self._max_tokens - len(sent)

    def prefill(self, context: LegContext, handover: Mapping[str, Any] = HAND_OVER) -> EngineRequest:
        """One token: shown to the user when exact or the only one, otherwise only a reason to prefill."""
        last = self.remaining_tokens(context.sent) == 1
        params = self._copy(context.sent) if self.exact or last else self._probe()
        return self._request(context, params, max_tokens=1, kv=None if last else handover)

    def decode(self, context: LegContext, pull_params: Mapping[str, Any] | None) -> EngineRequest:
        """Asks for the rest. Prefill has computed the prompt's logprobs already."""
        params = self._copy(context.sent)
        _drop_prompt_logprobs(params)
        return self._request(context, params, self.remaining_tokens(context.sent), pull_params)

    def decode_ahead(self, context: LegContext, push_params: Mapping[str, Any]) -> EngineRequest:
        """Asks for what `decode` asks for once prefill's token is sent. The prompt is still without that
        token."""
        request = self.decode(context, push_params)
        if not self.exact:
            return request
        limits = request.limits
        fewer = replace(limits, max_tokens=limits.max_tokens - 1, min_tokens=max(0, limits.min_tokens - 1))
        return replace(request, limits=fewer)

    def whole(self, context: LegContext) -> EngineRequest:
        return self._request(context, self._copy(context.sent), self.remaining_tokens(context.sent), None)

    def probe(
        self, context: LegContext, kv: Mapping[str, Any] | None, *, prompt_logprobs: bool = True
    ) -> EngineRequest:
        """Draws a token that is not shown. prompt_logprobs: whether to compute those that the client asks
        for."""
        params = self._probe()
        if not prompt_logprobs:
            _drop_prompt_logprobs(params)
        return self._request(context, params, max_tokens=1, kv=kv)

    def _copy(self, sent: Sequence[int]) -> SamplingParams:
        params = copy.copy(self._params)
        params.min_tokens = max(0, params.min_tokens - len(sent))
        if sent:
            _drop_prompt_logprobs(params)
        return params

    def _probe(self) -> SamplingParams:
        """Cannot stop, so that the KV is always leased; carries no grammar or penalty to prepare."""
        params = self._params
        return SamplingParams(
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            prompt_logprobs=params.prompt_logprobs,
            skip_reading_prefix_cache=params.skip_reading_prefix_cache,
        )

    def _request(
        self, context: LegContext, params: SamplingParams, max_tokens: int, kv: Mapping[str, Any] | None
    ) -> EngineRequest:
        params.max_tokens = max_tokens
        params.min_tokens = min(params.min_tokens, max_tokens)
        return EngineRequest(
            request_id=context.request_id,
            prompt_token_ids=[*self.prompt, *context.sent] if context.sent else self.prompt,
            limits=SamplingLimits(max_tokens, params.min_tokens, _stop_token_ids(params)),
            sampling_params=msgspec.msgpack.encode(params),
            cache_salt=context.cache_salt,
            tenant=context.tenant,
            adapter=context.adapter,
            priority=self.priority,
            kv_transfer_params=kv,
        )


class PromptLegs:
    """The legs that bring the prompt's KV to the decode worker, where several choices go on. legs: those of
    any choice."""

    exact = False
    stuck = ""

    def __init__(self, legs: SamplingLegs) -> None:
        self.prompt, self.priority = legs.prompt, legs.priority
        self._legs = legs

    def remaining_tokens(self, sent: Sequence[int]) -> int:
        """One token of prefill and one of decode; neither is shown."""
        return 2

    def prefill(self, context: LegContext, handover: Mapping[str, Any] = HAND_OVER) -> EngineRequest:
        return self._legs.probe(context, handover)

    def decode(self, context: LegContext, pull_params: Mapping[str, Any] | None) -> EngineRequest:
        return self._legs.probe(context, pull_params, prompt_logprobs=False)

    def decode_ahead(self, context: LegContext, push_params: Mapping[str, Any]) -> EngineRequest:
        return self.decode(context, push_params)

    def whole(self, context: LegContext) -> EngineRequest:
        return self._legs.probe(context, None)


def _drop_prompt_logprobs(params: SamplingParams) -> None:
    if params.prompt_logprobs is not None:
        params.prompt_logprobs = None
        params.skip_reading_prefix_cache = None  # it was on for the sake of the prompt logprobs


def _stop_token_ids(params: SamplingParams) -> frozenset[int]:
    """vLLM keeps the end-of-sequence token apart, and leaves it out when it is to be ignored."""
    eos = params.eos_token_id
    return frozenset(params.stop_token_ids or ()) | (frozenset() if eos is None else {eos})


_GREEDY_BELOW = 1e-5  # vLLM's _SAMPLING_EPS


def inexact_because(params: Any) -> str:
    """Returns why decode must draw the first token again; empty when it need not. params: SamplingParams."""
    return next((reason for reason, applies in _states_that_span(params) if applies), "")


def stuck_because(params: Any) -> str:
    """Returns why a request of which tokens were sent can go on nowhere else; empty when it can. Greedy and
    seeded sampling draw the same tokens when they run again, which rebuilds all state."""
    reason = inexact_because(params)
    if not reason or params.seed is not None or params.temperature < _GREEDY_BELOW:
        return ""
    return f"{reason}, and without a seed it would not draw the same tokens again"


def _states_that_span(params: Any) -> tuple[tuple[str, bool], ...]:
    return (
        ("the grammar's state spans it", params.structured_outputs is not None),
        ("presence_penalty counts output tokens", params.presence_penalty != 0.0),
        ("frequency_penalty counts output tokens", params.frequency_penalty != 0.0),
        ("the seeded generator's state spans it", _seeded(params)),
        ("a bad word may begin with it", bool(params.bad_words)),
        ("the thinking budget counts it", params.thinking_token_budget is not None),
        ("repetition detection sees it", params.repetition_detection is not None),
        ("a trace is replayed from it", params.trace_decode_token_ids is not None),
        ("a watermark depends on it", bool(params.watermarking)),
        ("custom arguments may keep state", bool(params.extra_args)),
    )


def _seeded(params: Any) -> bool:
    return params.seed is not None and params.temperature >= _GREEDY_BELOW
