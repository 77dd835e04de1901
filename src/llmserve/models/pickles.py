"""Converts a directory whose weights are pickles to one with safetensors.

A pickle can run any code when it is loaded. torch's `weights_only=True` reads tensors and plain containers
alone and refuses all else; this runs in a process of its own all the same (`python -m llmserve.models
convert`), so that a mistake in it reaches no process that serves.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmserve.core.errors import LLMServeError, ModelNotFound
from llmserve.core.process import importing
from llmserve.models.directory import PICKLES, check_directory, weight_files
from llmserve.models.files import Progress

_BESIDE = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
_INDEX = ".index.json"


def pickles_in(folder: Path) -> list[Path]:
    return sorted(file for pattern in PICKLES for file in folder.glob(pattern))


def convert_pickles(source: Path, out: Path, progress: Progress) -> None:
    """Writes safetensors and the small files of a model into an empty directory. Errors: ModelNotFound for a
    source that has no pickles, or already safetensors; LLMServeError for a pickle with more than tensors."""
    files = pickles_in(source)
    if weight_files(source) or not files:
        what = "has safetensors already" if weight_files(source) else "has no pickles with weights"
        raise ModelNotFound(f"{source} {what}: there is nothing to convert")
    progress("loading the libraries")
    with importing():
        from huggingface_hub import save_torch_state_dict

    progress("reading the pickles, tensors alone")
    tensors = {name: tensor for file in files for name, tensor in _tensors(file)}
    progress("writing safetensors")
    save_torch_state_dict(tensors, out, filename_pattern="model{suffix}.safetensors")
    for pattern in _BESIDE:
        for file in source.glob(pattern):
            if not file.name.endswith(_INDEX):
                shutil.copyfile(file, out / file.name)
    check_directory(out, str(source))


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    import torch

    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle's, zip's and torch's
        first = str(error).partition("\n")[0]
        raise LLMServeError(f"{file} holds more than tensors, or is no pickle of torch: {first}") from None
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            yield name, value
