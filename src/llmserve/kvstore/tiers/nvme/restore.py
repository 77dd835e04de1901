"""From the files of a directory to segments and an index."""

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from llmserve.kvstore.tiers.nvme import recovery
from llmserve.kvstore.tiers.nvme.disk import Disk, SegmentFile
from llmserve.kvstore.tiers.nvme.layout import Contents, Demand, Grave
from llmserve.kvstore.tiers.nvme.recovery import Found
from llmserve.kvstore.tiers.nvme.segments import Index, Place, Segment, Segments, segment_name, stamps_in
from llmserve.kvstore.tiers.nvme.threads import run_all, run_one

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
    stamp: int
    file: SegmentFile
    found: Found


async def restore(disk: Disk, threads: Executor, segments: Segments, index: Index) -> None:
    """Seals what was left open. Files that cannot be read, hold nothing, or are beyond the capacity (it may
    be less than it was) are removed. Errors: OSError when the directory cannot be listed."""
    stamps = stamps_in(await run_one(threads, disk.names))
    loaded = await run_all(threads, [partial(_load, disk, stamp) for stamp in stamps])
    kept = [one for one in loaded if one and _add(segments, one)]
    files = {one.stamp for one in kept}
    await run_all(threads, [partial(_discard, disk, stamp) for stamp in stamps if stamp not in files])
    _fill(index, segments, kept)


# -- on threads


def _load(disk: Disk, stamp: int) -> _Loaded | None:
    """None: there is nothing to be had from it."""
    name = segment_name(stamp)
    try:
        file = disk.open(name)
    except OSError as error:
        _log.warning("segment %s cannot be opened: %s", name, error)
        return None
    try:
        return _Loaded(stamp, file, _found(file, stamp))
    except (OSError, _Empty) as error:
        _log.warning("segment %s is given up: %s", name, error)
        file.close()
        return None


class _Empty(Exception):
    pass


def _found(file: SegmentFile, stamp: int) -> Found:
    """Errors: OSError, _Empty."""
    found = recovery.find(file, stamp)
    if not found.contents.entries and not found.contents.graves:
        raise _Empty("nothing in it is whole")
    if not found.has_footer:
        _seal(file, stamp, found)
    return found


def _seal(file: SegmentFile, stamp: int, found: Found) -> None:
    """It was open when its process died. Without a footer it serves as well; the next start is slower."""
    try:
        recovery.seal(file, stamp, found.contents, found.end)
    except OSError as error:
        _log.warning("segment %016x stays without a footer: %s", stamp, error)


def _discard(disk: Disk, stamp: int) -> None:
    try:
        disk.remove(segment_name(stamp))
    except OSError as error:
        _log.warning("segment %016x cannot be removed: %s", stamp, error)


# -- on the loop


def _add(segments: Segments, loaded: _Loaded) -> bool:
    """Whether the capacity has room for it."""
    if not segments.has_room_for(loaded.file.size_bytes, upkeep=True):
        loaded.file.close()
        return False
    graves = Contents(graves=loaded.found.contents.graves)
    placed = Demand(loaded.found.end)
    segments.add(Segment(loaded.stamp, loaded.file, loaded.file.size_bytes, placed, graves, is_sealed=True))
    return True


def _fill(index: Index, segments: Segments, kept: Sequence[_Loaded]) -> None:
    """A blob may be there twice, when the process died while it was copied: one of them counts."""
    graves = {grave for one in kept for grave in one.found.contents.graves}
    by_stamp = {segment.stamp: segment for segment in segments}
    for one in kept:
        segment = by_stamp[one.stamp]
        for key, offset, length in one.found.contents.entries:
            if Grave(one.stamp, offset) not in graves and key not in index:
                index.put(key, Place(segment, offset, length))
