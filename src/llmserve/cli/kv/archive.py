"""The files of `llmserve kv export` and `import`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.core.ids import BlockHash
from llmserve.kvstore.sharding import Sharding
from llmserve.kvstore.store.archive import ArchiveContents, ArchiveRecord, ArchiveWriter, check, read


@contextmanager
def new_archive(path: Path) -> Iterator[ArchiveWriter]:
    """Makes a file of mode 600. It is written beside its name and renamed at the end: a file of that name is
    whole, or not there.
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
def checked_archive(path: Path) -> Iterator[tuple[BinaryIO, ArchiveContents]]:
    """Yields the file when all of it was read and is whole. Errors: WrongArchive; InvalidRequest when it
    cannot be read."""
    try:
        with open(path, "rb") as file:
            yield file, check(file)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error


def owners_of(file: BinaryIO, managers: Sequence[str]) -> dict[BlockHash, str]:
    """Returns the KV manager that owns each block. file: checked; it has a block after the one before it.

    Blocks are sharded in runs, counted from the beginning of their prompt. A record names the block before
    it, except where a part of a prompt begins, which is where a run does. So the run of a block is found by
    counting from the first block of its chain in the file. Where the file lacks blocks in between, the rest
    is placed as if a run began there: at worst it is stored where nobody looks for it."""
    sharding = Sharding(dict.fromkeys(managers, 1.0))
    runs: dict[BlockHash, tuple[BlockHash, int]] = {}  # the first block of the run, and the place in it
    owners: dict[BlockHash, str] = {}
    for record in read(file):
        if isinstance(record, ArchiveRecord):
            head, place = _next_place(runs, record, sharding.run_blocks)
            runs[record.key] = head, place
            owners[record.key] = owners[head] if place else sharding.owner(head)
    return owners


def _next_place(
    runs: dict[BlockHash, tuple[BlockHash, int]], record: ArchiveRecord, run_blocks: int
) -> tuple[BlockHash, int]:
    if record.parent is None or record.parent not in runs:
        return record.key, 0
    head, place = runs[record.parent]
    return (head, place + 1) if place + 1 < run_blocks else (record.key, 0)
