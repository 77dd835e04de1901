"""The bytes of a heads file: a superblock, then one head for each blob slot. Pure.

A head says which blob lies in which pages of the data file, and has the checksum of its bytes there. The
checksum of the head itself starts from the random stamp in the superblock and covers the number of the slot:
a head of another file or of another slot is not taken for one. A slot of zeros is free. A blob in more than
32 pieces has several slots, each with a part of the pieces; it is there when all of them are.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from llmserve.kvstore.tiers.base import ALIGNMENT_BYTES, BlobKey
from llmserve.kvstore.tiers.nvme.pages import PageRun

PAGE = ALIGNMENT_BYTES
Int64s = npt.NDArray[np.int64]
HEAD_BYTES = 512
MAX_KEY_BYTES = 64
MAX_HEADER_BYTES = 1024
FREE_HEAD = bytes(HEAD_BYTES)
RUNS_IN_HEAD = 32
_MAGIC = b"LKV2"
_CHECK = struct.Struct("<Q")
_SUPERBLOCK = struct.Struct("<4sIQ")  # magic, bytes of a page, stamp
_HEAD = struct.Struct("<4sBBBQ64s")  # magic, bytes of the key, runs, part, sequence, key
_PLACE = struct.Struct("<BIHQQ")  # parts, slot, bytes of the header, length, check; runs follow
_RUN = struct.Struct("<QI")
_ONE_RUN = np.dtype([("place", f"V{_PLACE.size}"), ("first", "<u8"), ("pages", "<u4")])
_KEY_AT = _CHECK.size + _HEAD.size - MAX_KEY_BYTES
_PLACE_AT = _CHECK.size + _HEAD.size
_RUNS_AT = _PLACE_AT + _PLACE.size
_MAGIC_WORD = int.from_bytes(_MAGIC, "little")
assert _RUNS_AT + RUNS_IN_HEAD * _RUN.size <= HEAD_BYTES


class Place(NamedTuple):
    """Where a blob lies. slots: of its head. length: bytes of data, which the caller's header follows. check:
    the checksum of both. runs: its pages."""

    slots: tuple[int, ...]
    header_bytes: int
    length: int
    check: int
    runs: tuple[PageRun, ...]

    def packed(self) -> bytes:
        fixed = _PLACE.pack(len(self.slots), self.slots[0], self.header_bytes, self.length, self.check)
        return fixed + struct.pack(f"<{len(self.slots) - 1}I", *self.slots[1:]) + _pack_runs(self.runs)

    @classmethod
    def unpack(cls, packed: bytes) -> "Place":
        parts, slot, header_bytes, length, check = _PLACE.unpack_from(packed)
        others = struct.unpack_from(f"<{parts - 1}I", packed, _PLACE.size)
        runs = packed[_PLACE.size + 4 * len(others) :]
        return cls((slot, *others), header_bytes, length, check, _unpack_runs(runs))


class BlobHead(NamedTuple):
    """sequence: larger than that of every blob written before. place: packed. A blob of several slots has a
    part in each, with runs of its own; `joined` makes one head of them."""

    sequence: int
    key: BlobKey
    place: bytes
    part: int = 0


def padded(length: int) -> int:
    """The length up to the next page."""
    return -(-length // PAGE) * PAGE


def stored_pages(length: int, header_bytes: int) -> int:
    """Pages that a blob takes in the data file."""
    return max(1, -(-(length + header_bytes) // PAGE))


def slots_for(runs: int) -> int:
    """Slots that a blob in so many pieces needs."""
    return -(-runs // RUNS_IN_HEAD)


def check_of(data: memoryview, header: bytes | memoryview) -> int:
    state = xxhash.xxh3_64(data)
    state.update(header)
    return state.intdigest()


def pack_superblock(stamp: int) -> bytes:
    fields = _SUPERBLOCK.pack(_MAGIC, PAGE, stamp)
    return (_CHECK.pack(xxhash.xxh3_64_intdigest(fields)) + fields).ljust(HEAD_BYTES, b"\0")


def read_superblock(raw: bytes) -> int | None:
    """The stamp; None when this is no superblock of this version, or a damaged one."""
    fields = raw[_CHECK.size : _CHECK.size + _SUPERBLOCK.size]
    if len(fields) < _SUPERBLOCK.size or _CHECK.unpack_from(raw)[0] != xxhash.xxh3_64_intdigest(fields):
        return None
    magic, page, stamp = _SUPERBLOCK.unpack(fields)
    return int(stamp) if (magic, page) == (_MAGIC, PAGE) else None


def is_ours(raw: bytes) -> bool:
    """Whether a file that begins like this is one of this tier: it is empty, or says so."""
    return not raw or raw[_CHECK.size :].startswith(_MAGIC)


def pack_head(sequence: int, key: BlobKey, place: Place, stamp: int) -> list[tuple[int, bytes]]:
    """The slots of a head and their bytes."""
    packed = []
    for part, slot in enumerate(place.slots):
        runs = place.runs[part * RUNS_IN_HEAD :][:RUNS_IN_HEAD]
        name = _HEAD.pack(_MAGIC, len(key), len(runs), part, sequence, key)
        fixed = _PLACE.pack(len(place.slots), slot, place.header_bytes, place.length, place.check)
        body = (name + fixed + _pack_runs(runs)).ljust(HEAD_BYTES - _CHECK.size, b"\0")
        packed.append((slot, _CHECK.pack(xxhash.xxh3_64_intdigest(body, stamp)) + body))
    return packed


def read_heads(raw: memoryview, first_slot: int, stamp: int) -> Iterator[BlobHead]:
    """What is whole in each slot. raw: whole slots of the file, from this one on."""
    magic_words = np.frombuffer(raw, "<u4")[_CHECK.size // 4 :: HEAD_BYTES // 4]
    for number in np.flatnonzero(magic_words == _MAGIC_WORD).tolist():
        head = bytes(raw[number * HEAD_BYTES : (number + 1) * HEAD_BYTES])
        if _CHECK.unpack_from(head)[0] != xxhash.xxh3_64_intdigest(head[_CHECK.size :], stamp):
            continue
        _, key_bytes, runs, part, sequence, key = _HEAD.unpack_from(head, _CHECK.size)
        place = head[_PLACE_AT : _RUNS_AT + runs * _RUN.size]
        if slot_of(place) == first_slot + number:
            yield BlobHead(sequence, BlobKey(key[:key_bytes]), place, part)


def joined(parts: Iterable[BlobHead]) -> Iterator[BlobHead]:
    """The heads of whole blobs; those of which a part is missing are left out."""
    several: dict[int, list[BlobHead]] = {}
    for head in parts:
        if head.place[0] == 1:
            yield head
        else:
            several.setdefault(head.sequence, []).append(head)
    for heads in several.values():
        if len(heads) == heads[0].place[0]:
            places = [_unpack_part(head) for head in sorted(heads, key=lambda head: head.part)]
            slots = tuple(slot for place in places for slot in place.slots)
            runs = tuple(run for place in places for run in place.runs)
            yield BlobHead(
                heads[0].sequence, heads[0].key, places[0]._replace(slots=slots, runs=runs).packed()
            )


def slot_of(place: bytes) -> int:
    """The first slot of a packed place."""
    return int.from_bytes(place[1:5], "little")


def length_of(place: bytes) -> int:
    """Bytes of data of a packed place."""
    return int.from_bytes(place[7:15], "little")


def slots_of(place: bytes) -> tuple[int, ...]:
    return (slot_of(place),) if place[0] == 1 else Place.unpack(place).slots


def _unpack_part(head: BlobHead) -> Place:
    return Place.unpack(b"\1" + head.place[1:])


def page_table(places: Sequence[bytes]) -> tuple[Int64s, Int64s, Int64s]:
    """First page, end and number of the place for all runs of these places, ordered by page."""
    single = [number for number, place in enumerate(places) if len(place) == _ONE_RUN.itemsize]
    rows = np.frombuffer(b"".join([places[number] for number in single]), _ONE_RUN)
    taken = set(single)
    others = [
        (run.first, run.end, number)
        for number, place in enumerate(places)
        if number not in taken
        for run in Place.unpack(place).runs
    ]
    more = np.array(others, np.int64).reshape(-1, 3)
    first = np.concatenate([rows["first"].astype(np.int64), more[:, 0]])
    end = np.concatenate([rows["first"].astype(np.int64) + rows["pages"], more[:, 1]])
    owner = np.concatenate([np.array(single, np.int64), more[:, 2]])
    order = np.argsort(first, kind="stable")
    return first[order], end[order], owner[order]


def _pack_runs(runs: Sequence[PageRun]) -> bytes:
    return b"".join([_RUN.pack(*run) for run in runs])


def _unpack_runs(packed: bytes) -> tuple[PageRun, ...]:
    return tuple([PageRun(*row) for row in _RUN.iter_unpack(packed)])
