"""What is refused before an engine is asked, because no engine could serve it."""

import math
from typing import Any

import msgspec
from vllm.config import ModelConfig, VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.renderers import hf, renderer_from_config
from vllm.sampling_params import SamplingParams
from vllm.transformers_utils.processor import get_processor_cls_name_from_config

from llmserve.apiserver.engine.pieces import PieceTokenizer
from llmserve.core.errors import Forbidden, InvalidRequest

_INT32_LIMIT = 2**31


def fitting_renderer(config: VllmConfig) -> Any:
    """Returns vLLM's renderer for the model. It refuses a prompt that leaves no room for an answer, which
    vLLM notices only as a `max_tokens` of 0 that the client has not asked for. It tokenizes in pieces."""
    renderer = renderer_from_config(config)
    _expect_no_processor(config.model_config, renderer.tokenizer)
    _tokenize_in_pieces(renderer)
    process = renderer.process_for_engine_async

    async def process_fitting(prompt: Any, *args: Any, tok_params: Any = None, **options: Any) -> Any:
        limit = None if tok_params is None else tok_params.max_total_tokens
        if limit is not None:
            _check_room(len(prompt.get("prompt_token_ids", ())), limit)
        return await process(prompt, *args, tok_params=tok_params, **options)

    renderer.process_for_engine_async = process_fitting
    return renderer


def _expect_no_processor(model: ModelConfig, tokenizer: Any) -> None:
    """Notes that a model of text alone has no processor with a chat template of its own. vLLM would look for
    one, for which transformers reads the whole tokenizer a second time."""
    if not hasattr(tokenizer, "name_or_path"):  # there is none, or it is vLLM's own of Mistral's models
        return
    if model.is_multimodal_model or get_processor_cls_name_from_config(model.model):
        return
    code_revision = model.code_revision if model.tokenizer == model.model else None
    key = (tokenizer.name_or_path, model.tokenizer_revision, code_revision, model.trust_remote_code)
    hf._PROCESSOR_CHAT_TEMPLATES[key] = None


def _tokenize_in_pieces(renderer: Any) -> None:
    """Cuts chats only, since their template has the tokens that a tokenizer would add. All other prompts, and
    those that are too long, are left to the tokenizer."""
    pieces = PieceTokenizer.of(renderer.tokenizer, renderer._executor)
    if pieces is None:
        return
    tokenize = renderer._tokenize_prompt_async

    async def tokenize_in_pieces(prompt: Any, params: Any) -> Any:
        options = params.get_encode_kwargs()
        if not options["add_special_tokens"] and not renderer._wants_offsets(prompt, params):
            tokens = await pieces.tokens(prompt["prompt"])
            if not options["truncation"] or len(tokens) <= options["max_length"]:
                return renderer._build_tokens_prompt(tokens, prompt)
        return await tokenize(prompt, params)

    renderer._tokenize_prompt_async = tokenize_in_pieces


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


def check_supported(params: SamplingParams) -> None:
    """kv_transfer_params from outside could name another tenant's blocks."""
    if (params.extra_args or {}).get("kv_transfer_params") is not None:
        raise VLLMValidationError("kv_transfer_params is set by the cluster", parameter="kv_transfer_params")
    if params.prompt_logprob_token_ids is not None:
        raise VLLMValidationError(
            "prompt_logprob_token_ids is not available", parameter="prompt_logprob_token_ids"
        )


def check_sendable(params: SamplingParams, priority: int) -> None:
    """Checks that a request fits the messages to router and engine. Errors: InvalidRequest."""
    if not -_INT32_LIMIT <= priority < _INT32_LIMIT:
        raise InvalidRequest(f"priority must be a 32-bit integer, got {priority}", field="priority")
    for name in params.__struct_fields__:
        value = getattr(params, name)
        if isinstance(value, float) and not math.isfinite(value):  # JSON's 1e999
            raise InvalidRequest(f"{name} is not a finite number", field=name)
    if problem := _cannot_encode(params):
        fields = (name for name in params.__struct_fields__ if _cannot_encode(getattr(params, name)))
        name = next(fields, "")
        raise InvalidRequest(f"{name} cannot be sent to an engine: {problem}", field=name)


def check_priority(priority: int, most: int | None) -> None:
    """most: how many steps a request may be moved ahead; None: any number. Errors: Forbidden."""
    if most is not None and priority < -most:
        raise Forbidden(f"priority: this key may set it to {-most} or more, got {priority}")


def _cannot_encode(value: Any) -> str:
    """Returns the reason; empty when the value can be encoded."""
    try:
        msgspec.msgpack.encode(value)
    except (ValueError, TypeError, OverflowError) as error:
        return str(error)
    return ""
