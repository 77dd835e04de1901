"""The record beside converted files: what they were made from, and their checksums."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llmserve.models.digests import DigestCache, write_atomically

RECORD_NAME = ".llmserve-model.json"


@dataclass(frozen=True, slots=True)
class Record:
    """Written last into a directory: without it, the directory is not complete."""

    source_sha256: str
    converter_version: int
    files: dict[str, str]  # name -> SHA-256

    def write(self, folder: Path) -> None:
        write_atomically(folder / RECORD_NAME, json.dumps(asdict(self), indent=1, sort_keys=True))


def make_record(folder: Path, source_sha256: str, version: int, digests: DigestCache) -> Record:
    files = {file.name: digests.sha256(file) for file in sorted(folder.iterdir()) if file.is_file()}
    return Record(source_sha256, version, files)


def read_record(folder: Path) -> Record | None:
    """None: there is none, or it cannot be read."""
    try:
        record = Record(**json.loads((folder / RECORD_NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return record if isinstance(record.files, dict) else None


def first_damage(folder: Path, record: Record, digests: DigestCache) -> str | None:
    """The name of a file that is not what was written; None when all are."""
    for name, wanted in record.files.items():
        try:
            if digests.sha256(folder / name) != wanted:
                return name
        except OSError:
            return name
    return None
