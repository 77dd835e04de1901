"""The limits of a simulated engine: of a step, and of a request."""

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llmserve.core.errors import InvalidRequest
from llmserve.core.request import EngineRequest
from llmserve.engines.spec import EngineSpec

_DEFAULT_MODEL_LEN = 8192
_DEFAULT_BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """batch_tokens: the most tokens computed in one step; without chunked prefill a longer prompt has a step
    of its own. long_prompt_tokens: the most tokens of one prompt in one step; None: as many as there is room
    for."""

    max_concurrency: int
    batch_tokens: int
    chunked_prefill: bool = True
    long_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class SimLimits:
    block_size_tokens: int
    total_blocks: int
    max_model_len: int
    batch: BatchLimits

    @classmethod
    def of(cls, spec: EngineSpec) -> "SimLimits":
        engine = spec.engine
        return cls(
            block_size_tokens=spec.kv_cache.block_size_tokens or engine.sim.block_size_tokens,
            total_blocks=engine.sim.blocks,
            max_model_len=engine.max_model_len or _model_len(spec.model_dir),
            batch=BatchLimits(
                engine.max_decode_concurrency,
                engine.max_batched_tokens or _DEFAULT_BATCH_TOKENS,
                engine.chunked_prefill,
                engine.prefill_long_prompt_tokens,
            ),
        )

    def check(self, request: EngineRequest) -> None:
        """Errors: InvalidRequest for a request that this engine can never serve."""
        self.check_sizes(len(request.prompt_token_ids), request.limits.max_tokens)
        if _asks_logprobs(request.sampling_params):
            raise InvalidRequest("a simulated engine computes no logprobs", field="logprobs")

    def check_sizes(self, prompt_tokens: int, output_tokens: int) -> None:
        """Checks the sizes of a request. Errors: as check."""
        if prompt_tokens < 1 or output_tokens < 1:
            raise InvalidRequest("a request needs a prompt and at least one token of output")
        total = prompt_tokens + output_tokens
        if total > self.max_model_len:
            raise InvalidRequest(
                f"{prompt_tokens} prompt tokens and {output_tokens} output tokens exceed "
                f"the model's limit of {self.max_model_len}"
            )
        if total - 1 > self.total_blocks * self.block_size_tokens:
            raise InvalidRequest(
                f"the KV of {total} tokens can never fit into {self.total_blocks} blocks "
                f"of {self.block_size_tokens} tokens"
            )


def _asks_logprobs(sampling_params: bytes) -> bool:
    """sampling_params: vLLM's, which leave out what is not set. Most have no need to be decoded."""
    if b"logprobs" not in sampling_params:
        return False
    params = msgspec.msgpack.decode(sampling_params)
    return params.get("logprobs") is not None or params.get("prompt_logprobs") is not None


def _model_len(model_dir: Path | None) -> int:
    """Returns the length in the model's config.json, as vLLM reads it."""
    path = model_dir / "config.json" if model_dir else None
    if path is None or not path.is_file():
        return _DEFAULT_MODEL_LEN
    return int(json.loads(path.read_text()).get("max_position_embeddings", _DEFAULT_MODEL_LEN))
