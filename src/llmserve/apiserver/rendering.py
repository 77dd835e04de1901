"""vLLM's renderer (chat template, tokenizing), with one check more."""

from typing import Any

from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.renderers import renderer_from_config


def fitting_renderer(config: VllmConfig) -> Any:
    """Returns vLLM's renderer for the model. It refuses a prompt that leaves no room for an answer, which
    vLLM notices only as a `max_tokens` of 0 that nobody has asked for."""
    renderer = renderer_from_config(config)
    process = renderer.process_for_engine_async

    async def process_fitting(prompt: Any, *args: Any, tok_params: Any = None, **options: Any) -> Any:
        limit = None if tok_params is None else tok_params.max_total_tokens
        if limit is not None:
            _check_room(len(prompt.get("prompt_token_ids", ())), limit)
        return await process(prompt, *args, tok_params=tok_params, **options)

    renderer.process_for_engine_async = process_fitting
    return renderer


def _check_room(prompt_tokens: int, limit_tokens: int) -> None:
    """Errors: VLLMValidationError. Its words are those that vLLM has for longer prompts."""
    if prompt_tokens >= limit_tokens:
        raise VLLMValidationError(
            f"This model's maximum context length is {limit_tokens} tokens. However, your prompt contains "
            f"{prompt_tokens} input tokens, which leaves no room for any output token. Please reduce the "
            "length of the input prompt.",
            parameter="input_tokens",
            value=prompt_tokens,
        )
