"""The bytes of a heads file: a superblock, then one head for each blob slot. Pure.

A head says which blob lies in which pages of the data file, and has the checksum of its bytes there. The
checksum of the head itself starts from the random stamp in the superblock and covers the number of the slot:
a head of another file or of another slot is not taken for one. A slot of zeros is free. A blob in more than
32 pieces has several slots, each with a part of the pieces; it is there when all of them are.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
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
_ONE_RUN = np.dtype(
    [
        ("parts", "u1"),
        ("slot", "<u4"),
        ("header_bytes", "<u2"),
        ("length", "<u8"),
        ("check", "<u8"),
        ("first", "<u8"),
        ("pages", "<u4"),
    ]
)
# Offsets in the body of a head, which is what follows its checksum.
_KEY_AT = _HEAD.size - MAX_KEY_BYTES
_PLACE_AT = _HEAD.size
_RUNS_AT = _PLACE_AT + _PLACE.size
_BODY_BYTES = HEAD_BYTES - _CHECK.size
_MAGIC_WORD = int.from_bytes(_MAGIC, "little")
assert _RUNS_AT + RUNS_IN_HEAD * _RUN.size <= _BODY_BYTES
_BODY = np.dtype(
    {
        "names": ["magic", "key_bytes", "runs", "part", "sequence", "slot"],
        "formats": ["<u4", "u1", "u1", "u1", "<u8", "<u4"],
        "offsets": [0, 4, 5, 6, 7, _PLACE_AT + 1],
        "itemsize": _BODY_BYTES,
    }
)
_HEAD_ROW = np.dtype([("check", "<u8"), ("body", f"V{_BODY_BYTES}")])


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


@dataclass(frozen=True, slots=True)
class PlaceTable:
    """Columns of many places. first, end, owner: the first page of each run, its end and the number of its
    place, ordered by page. slots: of all heads. held_bytes: the sum of the lengths."""

    first: Int64s
    end: Int64s
    owner: Int64s
    slots: Int64s
    held_bytes: int

    @classmethod
    def of(cls, packed: Sequence[bytes]) -> "PlaceTable":
        """Nearly all places have one run: those are read by columns."""
        sizes = np.fromiter(map(len, packed), np.int64, len(packed))
        single = sizes == _ONE_RUN.itemsize
        rows = np.frombuffer(b"".join(compress(packed, single.tolist())), _ONE_RUN)
        numbers = np.flatnonzero(~single).tolist()
        others = [(number, Place.unpack(packed[number])) for number in numbers]
        runs = [(run.first, run.end, number) for number, place in others for run in place.runs]
        more = np.array(runs, np.int64).reshape(-1, 3)
        first = np.concatenate([rows["first"].astype(np.int64), more[:, 0]])
        end = np.concatenate([rows["first"].astype(np.int64) + rows["pages"], more[:, 1]])
        owner = np.concatenate([np.flatnonzero(single), more[:, 2]])
        order = np.argsort(first, kind="stable")
        slots = np.array([slot for _, place in others for slot in place.slots], np.int64)
        return cls(
            first[order],
            end[order],
            owner[order],
            np.concatenate([rows["slot"].astype(np.int64), slots]),
            int(rows["length"].sum()) + sum(place.length for _, place in others),
        )


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


def read_heads(raw: memoryview, first_slot: int, stamp: int) -> list[BlobHead]:
    """What is whole in each slot. raw: whole slots of the file, from this one on."""
    rows = np.frombuffer(raw, _HEAD_ROW)
    numbers = np.flatnonzero(rows["body"].view(_BODY)["magic"] == _MAGIC_WORD)
    rows = rows[numbers]
    fields, bodies = rows["body"].view(_BODY), rows["body"].tolist()
    digests = np.fromiter(map(xxhash.xxh3_64_intdigest, bodies, repeat(stamp)), np.uint64, len(bodies))
    is_whole = (rows["check"] == digests) & (fields["slot"] == numbers + first_slot)
    fields, bodies = fields[is_whole], compress(bodies, is_whole.tolist())
    columns = [fields[name].tolist() for name in ("sequence", "key_bytes", "runs", "part")]
    return [
        BlobHead(
            sequence,
            BlobKey(body[_KEY_AT : _KEY_AT + key_bytes]),
            body[_PLACE_AT : _RUNS_AT + runs * _RUN.size],
            part,
        )
        for body, sequence, key_bytes, runs, part in zip(bodies, *columns, strict=True)
    ]


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


def _pack_runs(runs: Sequence[PageRun]) -> bytes:
    return b"".join([_RUN.pack(*run) for run in runs])


def _unpack_runs(packed: bytes) -> tuple[PageRun, ...]:
    return tuple([PageRun(*row) for row in _RUN.iter_unpack(packed)])
