"""What vLLM's layer asks of the engine client, and the sequences of which a request consists."""

from collections.abc import Iterator
from copy import copy
from typing import Any, NamedTuple

from vllm.config import ModelConfig
from vllm.pooling_params import PoolingParams
from vllm.renderers.inputs.preprocess import extract_prompt_components
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.parallel_sampling import ParentRequest

from llmserve.apiserver.adapters.names import AdapterRequest


class Asked(NamedTuple):
    """A call of `generate` or `encode`. prompt: rendered or raw. prompt_text: its text, if vLLM's layer gives
    it."""

    request_id: str
    prompt: Any
    params: SamplingParams | PoolingParams
    prompt_text: str | None
    adapter: AdapterRequest | None
    priority: int

    def text(self, model_config: ModelConfig) -> str | None:
        """Returns the text of the prompt; None for one that came as tokens."""
        text: str | None = extract_prompt_components(model_config, self.prompt)[0]
        return text if self.prompt_text is None else self.prompt_text


def sequences_of(request: EngineCoreRequest, parent: ParentRequest | None) -> Iterator[EngineCoreRequest]:
    """Yields the request itself, or its children when it asks for several choices."""
    if parent is None:
        yield request
        return
    for index in range(parent.n):
        child = copy(request)
        child.request_id, child.sampling_params = parent.get_child_info(index)
        yield child
