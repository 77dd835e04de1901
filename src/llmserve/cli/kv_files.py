"""The files of `llmserve kv export` and `import`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.kvstore.archive import ArchiveWriter, Contents, check


@contextmanager
def new_archive(path: Path) -> Iterator[ArchiveWriter]:
    """Of mode 600. Written beside it and renamed at the end: a file of that name is whole, or not there.
    Errors: InvalidRequest when it exists, LLMServeError when it cannot be written."""
    if path.exists():
        raise InvalidRequest(f"{path} exists: choose another name")
    part = path.with_name(f"{path.name}.part")
    try:
        with open(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
            writer = ArchiveWriter(file)
            yield writer
            writer.finish()
        part.rename(path)
    except OSError as error:
        raise LLMServeError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def checked_archive(path: Path) -> Iterator[tuple[BinaryIO, Contents]]:
    """All of it was read and is whole. Errors: WrongArchive; InvalidRequest when it cannot be read."""
    try:
        with open(path, "rb") as file:
            yield file, check(file)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
