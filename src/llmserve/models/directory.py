"""A model directory: whether it is complete, which files hold its weights, and the identity of the model.

The identity is one digest over the contents of every file from which an engine computes. It names the model
wherever KV is named: in the hand-over between workers, in the store, and in the router's index. So it depends
on contents alone, never on names of models, places or commits. A file counts unless it is known that it
cannot change the KV of given tokens: an unknown kind of file makes a new identity rather than a wrong hit.
"""

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llmserve.core.errors import LLMServeError, ModelNotFound
from llmserve.core.json_object import json_object
from llmserve.models.files import DigestCache, Progress, silent

SAFETENSORS = "*.safetensors"
PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt", "consolidated*.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tekken.json", "vocab.json")


def check_directory(path: Path, source: str) -> None:
    """Errors: ModelNotFound with the first thing that is missing."""
    if not path.is_dir():
        raise ModelNotFound(f"model '{source}': {path} is not a directory")
    _check_config(path, source)
    if not weight_files(path):
        if pickles := sorted(file.name for pattern in PICKLES for file in path.glob(pattern)):
            raise ModelNotFound(only_pickles(f"model '{source}'", pickles))
        raise ModelNotFound(
            f"model '{source}': {path} holds no weights (looked for {SAFETENSORS}); is the download complete?"
        )
    _check_shards(path, source)


def without_tokenizer(path: Path) -> str | None:
    """Returns why a directory holds no model that can be served; None: it has a tokenizer. Models that only
    propose tokens to another one need none, and most heads have none."""
    if any((path / name).is_file() for name in _TOKENIZERS):
        return None
    return f"{path} holds no tokenizer (looked for {', '.join(_TOKENIZERS)})"


def limits(path: Path) -> str:
    """Returns what a complete directory is good for; empty when a model in it can be served."""
    return "" if without_tokenizer(path) is None else "no tokenizer: only as a draft or head"


def read_config(path: Path, name: str = "config.json") -> Mapping[str, Any]:
    """Returns a JSON file of the model's settings. Errors: ModelNotFound."""
    file = path / name
    try:
        return json_object(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"{file} cannot be read: {error}") from None


def read_vocabulary(path: Path) -> Mapping[str, int]:
    """Returns the id of each token of tokenizer.json, without those that were added beside its vocabulary.
    Empty: there is no such file, or its tokens have no ids in it. Errors: ModelNotFound."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return {}
    try:
        tokens = json_object(file.read_text())["model"].get("vocab", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotFound(f"{file} cannot be read: {error!r}") from None
    if isinstance(tokens, list):  # Unigram: each with its score
        return {str(token): number for number, (token, *_) in enumerate(tokens)}
    return dict(tokens)


def weight_files(path: Path) -> list[Path]:
    """Returns the files of the weights. A link to a file that is gone is none."""
    return sorted(file for file in path.glob(SAFETENSORS) if file.is_file() and file.stat().st_size > 0)


def only_pickles(source: str, names: Sequence[str]) -> str:
    """Returns why a model is refused whose weights are pickles."""
    return (
        f"{source}: its weights are pickles ({names[0]}), which can run any code: LLMServe loads safetensors "
        "and GGUF alone. `llmserve models convert` makes safetensors of a directory with pickles"
    )


def _check_config(path: Path, source: str) -> None:
    config = path / "config.json"
    try:
        json_object(config.read_text())
    except FileNotFoundError:
        raise ModelNotFound(f"model '{source}': {config} is missing; is this a model directory?") from None
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"model '{source}': {config} cannot be read: {error}") from None


def _check_shards(path: Path, source: str) -> None:
    """Checks that the files of an index exist: an index names all files of the weights."""
    for index in path.glob("*.index.json"):
        try:
            names = set(json_object(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelNotFound(f"model '{source}': {index} cannot be read: {error!r}") from None
        missing = sorted(name for name in names if not (path / name).is_file())
        # A directory may hold two formats of the weights, each with an index; one complete format is enough.
        if missing and not any(file.name not in names for file in weight_files(path)):
            raise ModelNotFound(
                f"model '{source}': {path} lacks {len(missing)} of {len(names)} weight files, such as "
                f"{missing[0]}; is the download complete?"
            )


_TEXT_TO_TOKENS = (  # KV is named by token ids, whatever made them
    "tokenizer*.json",
    "tokenizer.model*",
    "tekken.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "*.tiktoken",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "*.jinja",
)
_SAMPLING = ("generation_config.json",)  # sampling follows the KV
_FOR_PEOPLE = (
    ".*",
    "README*",
    "LICEN[CS]E*",
    "NOTICE*",
    "*.md",
    "*.png",
    "*.jpg",
    "*.jpeg",
    "*.svg",
    "*.pdf",
)
_DO_NOT_COUNT = (*_TEXT_TO_TOKENS, *_SAMPLING, *_FOR_PEOPLE)


def model_identity(folder: Path, digests: DigestCache, progress: Progress = silent) -> str:
    """Reads files whose digests are not cached. Errors: LLMServeError for a file that cannot be read."""
    try:
        files = identity_files(folder)
        contents = digests.sha256_of_all(files, progress)
    except OSError as error:
        raise LLMServeError(f"the model in {folder} cannot be read: {error}") from error
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{contents[file]}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def identity_files(folder: Path) -> list[Path]:
    """Returns the files that count, in order. vLLM loads nothing from subfolders."""
    return sorted(file for file in folder.iterdir() if _counts(file.name) and file.is_file())


def _counts(name: str) -> bool:
    return not any(fnmatch(name, pattern) for pattern in _DO_NOT_COUNT)
