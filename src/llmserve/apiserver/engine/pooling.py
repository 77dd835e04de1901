"""What an engine is asked to do for a pooled output: an embedding, or scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from vllm.pooling_params import PoolingParams

from llmserve.apiserver.request.context import HAND_OVER, LegContext
from llmserve.core.request import EngineRequest, SamplingLimits


class PoolingLegs:
    """One leg whatever the placement, since nothing is decoded. params: verified by vLLM's InputProcessor."""

    exact = True
    stuck = ""

    def __init__(self, prompt: Sequence[int], params: PoolingParams, priority: int) -> None:
        self.prompt, self.priority = prompt, priority
        self._params = msgspec.msgpack.encode(params)

    def remaining_tokens(self, sent: Sequence[int]) -> int:
        """One, as for the last token of an answer: the router expects no more, and no KV is handed on."""
        return 1

    def prefill(self, context: LegContext, handover: Mapping[str, Any] = HAND_OVER) -> EngineRequest:
        return self.whole(context)

    def decode(self, context: LegContext, pull_params: Mapping[str, Any] | None) -> EngineRequest:
        return self.whole(context)

    def decode_ahead(self, context: LegContext, push_params: Mapping[str, Any]) -> EngineRequest:
        return self.whole(context)

    def whole(self, context: LegContext) -> EngineRequest:
        return EngineRequest(
            request_id=context.request_id,
            prompt_token_ids=self.prompt,
            limits=SamplingLimits(max_tokens=1),
            cache_salt=context.cache_salt,
            tenant=context.tenant,
            adapter=context.adapter,
            priority=self.priority,
            pooling_params=self._params,
        )
