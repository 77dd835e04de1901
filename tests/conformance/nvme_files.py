"""The files of an NVMe tier, looked at from outside, and changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmserve.kvstore.tiers.base import BlobKey
from llmserve.kvstore.tiers.nvme.disk import LocalFile
from llmserve.kvstore.tiers.nvme.head_file import HeadFile
from llmserve.kvstore.tiers.nvme.heads import HEAD_BYTES, PAGE, Place, joined, read_superblock
from llmserve.kvstore.tiers.nvme.recovery import DATA_NAME, HEADS_NAME


@dataclass(frozen=True, slots=True)
class Stored:
    """path: of the data file."""

    path: Path
    key: BlobKey
    place: bytes

    @property
    def length(self) -> int:
        return Place.unpack(self.place).length

    @property
    def data_at(self) -> int:
        return Place.unpack(self.place).runs[0].first * PAGE


def stored(directory: Path) -> Iterator[Stored]:
    """All blobs that have a head."""
    path = directory / HEADS_NAME
    if not path.exists():
        return
    file = LocalFile(path, 0)
    try:
        stamp = read_superblock(path.read_bytes()[:HEAD_BYTES])
        heads = list(HeadFile(file, stamp).read_all(file.size_bytes)) if stamp is not None else []
    finally:
        file.close()
    yield from (Stored(directory / DATA_NAME, head.key, head.place) for head in joined(heads))


def size_on_disk(directory: Path) -> int:
    return sum((directory / name).stat().st_size for name in (HEADS_NAME, DATA_NAME))


def flip(path: Path, at: int, mask: int = 1) -> None:
    """Changes bits of one byte."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ mask]))
