"""The identity of a model: one digest over the contents of every file from which an engine computes.

It names the model wherever KV is named: in the hand-over between workers, in the store, in the router's
index. So it depends on contents alone, never on names of models, places or commits. A file counts unless it
is known that it cannot change the KV of given tokens: a file of a new kind makes a new identity rather than
a wrong hit.
"""

import hashlib
from fnmatch import fnmatch
from pathlib import Path

from llmserve.core.errors import LLMServeError
from llmserve.models.digests import DigestCache
from llmserve.models.prepared import Progress, silent

_TEXT_TO_TOKENS = (  # KV is named by token ids, however they were made
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
_SAMPLING = ("generation_config.json",)  # comes after the KV
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
    """Reads what the cache of digests does not know. Errors: LLMServeError for a file that cannot be read."""
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
    """Those that count, in order. vLLM loads nothing from folders below."""
    return sorted(file for file in folder.iterdir() if _counts(file.name) and file.is_file())


def _counts(name: str) -> bool:
    return not any(fnmatch(name, pattern) for pattern in _DO_NOT_COUNT)
