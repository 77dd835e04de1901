"""The files of `llmserve kv export` and `import`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.core.ids import BlockHash
from llmserve.kvstore.archive import ArchiveWriter, Contents, Record, check, read
from llmserve.kvstore.placing import Placing


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


def homes_of(file: BinaryIO, managers: Sequence[str]) -> dict[BlockHash, str]:
    """The manager of each block. file: checked; it has a block after the one before it."""
    placing = Placing(dict.fromkeys(managers, 1.0))
    runs: dict[BlockHash, tuple[BlockHash, int]] = {}  # the first block of the run, and the place in it
    homes: dict[BlockHash, str] = {}
    for record in read(file):
        if isinstance(record, Record):
            head, place = _next_place(runs, record, placing.run_blocks)
            runs[record.key] = head, place
            homes[record.key] = homes[head] if place else placing.home(head)
    return homes


def _next_place(
    runs: dict[BlockHash, tuple[BlockHash, int]], record: Record, run_blocks: int
) -> tuple[BlockHash, int]:
    if record.parent is None or record.parent not in runs:
        return record.key, 0
    head, place = runs[record.parent]
    return (head, place + 1) if place + 1 < run_blocks else (record.key, 0)
