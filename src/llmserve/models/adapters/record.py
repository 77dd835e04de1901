"""The record of an adapter's directory: what was checked when it was made, and the checksums of its files."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llmserve.core.ids import AdapterDigest
from llmserve.models.files import file_sha256

_NAME = "record.json"


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """rank: the largest of its modules. sizes, checksums: bytes and SHA-256 of each file by its name."""

    digest: AdapterDigest
    rank: int
    sizes: Mapping[str, int]
    checksums: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        return sum(self.sizes.values())

    def write(self, folder: Path) -> None:
        (folder / _NAME).write_text(json.dumps(asdict(self)))

    def is_whole(self, folder: Path) -> bool:
        """Returns whether the files have the sizes that they were written with."""
        try:
            return all((folder / name).stat().st_size == size for name, size in self.sizes.items())
        except OSError:
            return False

    def first_damage(self, folder: Path) -> str:
        """Returns the name of a file that differs from what was written, which reads all; empty when none
        does. Errors: OSError."""
        wanted = self.checksums.items()
        return next((name for name, digest in wanted if file_sha256(folder / name) != digest), "")


def make_record(folder: Path, digest: AdapterDigest, rank: int) -> AdapterRecord:
    files = sorted(path for path in folder.iterdir() if path.name != _NAME)
    return AdapterRecord(
        digest,
        rank,
        {path.name: path.stat().st_size for path in files},
        {path.name: file_sha256(path) for path in files},
    )


def read_record(folder: Path) -> AdapterRecord | None:
    """Returns None when there is no record, or when the directory is not what it says."""
    try:
        record = AdapterRecord(**json.loads((folder / _NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.digest == folder.name and record.is_whole(folder) else None
