"""One GGUF file to a directory of safetensors, tokenizer and generation settings. Heavy: imports torch.

Runs as a process of its own (`python -m llmserve.models convert`), so that whoever starts it stays light.
"""

from pathlib import Path
from typing import Any

from llmserve.core.errors import LLMServeError
from llmserve.models.prepared import Progress

CONVERTER_VERSION = 1
"""Part of the cache key: raise it when the output of a conversion changes."""

_PROBE = [{"role": "user", "content": "Hello"}]


def convert_gguf(source: Path, out: Path, progress: Progress) -> None:
    """Errors: LLMServeError when the result has no working chat template although the source has one."""
    progress("loading the libraries")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    origin: dict[str, Any] = {"gguf_file": source.name}
    progress("reading the tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, **origin)
    progress("dequantizing the weights to bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
        **origin,
    )
    _drop_quantization(model)
    progress("writing safetensors")
    model.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    progress("checking the chat template")
    _check_chat_template(transformers.AutoTokenizer.from_pretrained(out), tokenizer.chat_template, source)


def _drop_quantization(model: Any) -> None:
    """The result is plain bfloat16; vLLM would look for a quantized format."""
    for holder in (model, model.config):
        if getattr(holder, "quantization_config", None) is not None:
            del holder.quantization_config


def _check_chat_template(tokenizer: Any, wanted: str | None, source: Path) -> None:
    if not wanted:
        return
    rendered = tokenizer.apply_chat_template(_PROBE, tokenize=False, add_generation_prompt=True)
    if _PROBE[0]["content"] not in rendered:
        raise LLMServeError(f"{source}: its chat template does not work after the conversion")
