"""Opens the files of a tier, new or left by an earlier process, and finds the blobs in them. Blocks.

A foreign file under one of its names fails the start and is not changed. Files of an earlier format, and
files that a power failure has torn apart, hold nothing usable and are dropped.
"""

import logging
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmserve.core.errors import StartFailed
from llmserve.kvstore.tiers.nvme.disk import Disk, TierFile
from llmserve.kvstore.tiers.nvme.head_file import HeadFile
from llmserve.kvstore.tiers.nvme.heads import (
    HEAD_BYTES,
    PAGE,
    BlobHead,
    PlaceTable,
    is_ours,
    joined,
    pack_superblock,
    read_superblock,
    slot_of,
    slots_of,
)
from llmserve.kvstore.tiers.nvme.record_io import scratch
from llmserve.kvstore.tiers.nvme.space import Space

_log = logging.getLogger(__name__)
HEADS_NAME, DATA_NAME = "heads.kv", "data.kv"
_SEGMENT_NAME = re.compile(r"[0-9a-f]{16}\.kv")  # files of the first format: segments with footers
_SEGMENT_MAGIC, _SEGMENT_MAGIC_AT = b"LKV1", 8


@dataclass(frozen=True, slots=True)
class TierFiles:
    heads: HeadFile
    data: TierFile

    def close(self) -> None:
        self.heads.file.close()
        self.data.close()


def open_files(disk: Disk, directory: Path, space: Space) -> TierFiles:
    """Fills the space with what is found. Errors: StartFailed for a foreign file, OSError."""
    drop_segments(disk)
    heads_file = disk.open(HEADS_NAME, direct=False)
    try:
        data = disk.open(DATA_NAME, direct=True)
        try:
            heads = HeadFile(heads_file, _stamp(directory, heads_file, data))
            _restore(space, heads, data)
        except BaseException:
            data.close()
            raise
    except BaseException:
        heads_file.close()
        raise
    return TierFiles(heads, data)


def drop_segments(disk: Disk) -> None:
    """Removes the files of the first format. One that does not begin as these did stays where it is."""
    dropped = [name for name in disk.names() if _SEGMENT_NAME.fullmatch(name) and _is_segment(disk, name)]
    for name in dropped:
        disk.remove(name)
    if dropped:
        _log.warning(
            "%d segment files of an earlier release are removed (first: %s); their blocks are lost",
            len(dropped),
            dropped[0],
        )


def _is_segment(disk: Disk, name: str) -> bool:
    try:
        file = disk.open(name, direct=False)
    except OSError as error:
        _log.warning("%s is left alone: %s", name, error)
        return False
    try:
        first = _first_bytes(file)
    finally:
        file.close()
    return first[_SEGMENT_MAGIC_AT:].startswith(_SEGMENT_MAGIC)


def _stamp(directory: Path, heads: TierFile, data: TierFile) -> int:
    """The stamp that both files have; a new one where there is none."""
    firsts = {HEADS_NAME: _first_bytes(heads), DATA_NAME: _first_bytes(data)}
    stamps = [read_superblock(first) for first in firsts.values()]
    foreign = [name for name, first in firsts.items() if not is_ours(first)]
    if foreign and stamps == [None, None]:
        raise StartFailed(
            f"{directory / foreign[0]} is no file of an NVMe tier: move it away or use another directory"
        )
    if stamps[0] is not None and stamps[0] == stamps[1]:
        return stamps[0]
    return _started_over(directory, heads, data)


def _started_over(directory: Path, heads: TierFile, data: TierFile) -> int:
    if heads.size_bytes or data.size_bytes:
        _log.warning("%s: its files do not belong together; their blocks are lost", directory)
    stamp = secrets.randbits(64)
    page = scratch(PAGE)
    page[:HEAD_BYTES] = pack_superblock(stamp)
    heads.resize(0)  # first, so that heads are never beside data of another stamp
    data.resize(0)
    for file, superblock in ((data, page), (heads, page[:HEAD_BYTES])):
        file.write([superblock], 0)  # makes the file longer: it is empty or says whose it is, at any moment
        file.resize(len(superblock))
        file.sync()
    return stamp


def _first_bytes(file: TierFile) -> bytes:
    page = scratch(PAGE)
    there = file.read([page], 0)
    return bytes(page[: min(there, HEAD_BYTES)])


def _restore(space: Space, heads: HeadFile, data: TierFile) -> None:
    """The capacity may be less than it was: what lies beyond it is given up."""
    heads_bytes = min(heads.file.size_bytes // HEAD_BYTES * HEAD_BYTES, space.capacity_bytes // 8)
    data_bytes = min(data.size_bytes, space.capacity_bytes - heads_bytes) // PAGE * PAGE
    found = list(heads.read_all(heads_bytes))
    kept = _kept(joined(found), data_bytes // PAGE)
    if len(kept) < len(found):
        lost = {slot_of(head.place) for head in found}
        lost.difference_update(slot for head in kept for slot in slots_of(head.place))
        heads.erase(sorted(lost))
    if heads.file.size_bytes > heads_bytes:
        heads.file.resize(heads_bytes)
    if data.size_bytes > data_bytes:
        data.resize(data_bytes)
    space.restore(kept, data_bytes, heads_bytes)


def _kept(found: Iterable[BlobHead], pages: int) -> list[BlobHead]:
    """In the order of writing. Of two heads of one key, or with a page in common, the newer counts: the older
    one could not be erased. What lies beyond so many pages is left out."""
    heads = sorted(found)
    newest = {head.key: number for number, head in enumerate(heads)}
    kept = [heads[number] for number in sorted(newest.values())]
    while left_out := _left_out(kept, pages):
        kept = [head for number, head in enumerate(kept) if number not in left_out]
    return kept


def _left_out(heads: Sequence[BlobHead], pages: int) -> set[int]:
    """Numbers of heads, which are in the order of writing: those beyond the end, and of each two whose pages
    overlap the older one."""
    table = PlaceTable.of([head.place for head in heads])
    first, end, owner = table.first, table.end, table.owner
    left_out = set(owner[(end > pages) | (first < 1)].tolist())
    longest = np.maximum.accumulate(end)  # the largest end up to each run, and which run has it
    which = np.maximum.accumulate(np.where(end == longest, np.arange(len(end)), 0))
    overlaps = np.flatnonzero(first[1:] < longest[:-1])
    return left_out | {int(min(owner[which[at]], owner[at + 1])) for at in overlaps}
