"""The files of an NVMe tier, looked at from outside, and changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmserve.kvstore.tiers.base import ALIGNMENT_BYTES, BlobKey
from llmserve.kvstore.tiers.nvme import recovery
from llmserve.kvstore.tiers.nvme.disk import LocalFile


@dataclass(frozen=True, slots=True)
class Stored:
    path: Path
    key: BlobKey
    offset: int
    length: int

    @property
    def data_at(self) -> int:
        return self.offset + ALIGNMENT_BYTES


def segment_paths(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.kv"))


def stored(directory: Path) -> Iterator[Stored]:
    """All blobs that are whole, removed ones too."""
    for path in segment_paths(directory):
        file = LocalFile(path, 0)
        try:
            found = recovery.find(file, int(path.stem, 16))
        finally:
            file.close()
        yield from (Stored(path, *entry) for entry in found.contents.entries)


def flip(path: Path, at: int, mask: int = 1) -> None:
    """Changes bits of one byte."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ mask]))
