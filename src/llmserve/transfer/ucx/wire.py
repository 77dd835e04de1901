"""Control messages of the ucx transport, and how the bytes of a batch are cut into tagged messages.

A connection is a pair of link numbers, each unique in its process. HELLO carries the requester's number and
WELCOME the owner's, in the field of a part. Then, for each part of a batch, numbered by the requester:
  read:   READ, spans ->                              <- the bytes
  write:  WRITE, spans ->   <- READY    the bytes ->  <- DONE
Bytes carry the number of the link that receives them, which has posted the receives before. REFUSED and BYE,
each with a reason, end the connection. Numbers are little-endian.
"""

import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, Spans
from llmserve.transfer.spans import SPAN_BYTES, split, unpack_spans

VERSION = 1
CONTROL_TAG = 1 << 56
PART_BYTES = 16 << 20
PART_SPANS = 4096
PACK_BYTES = 1 << 20  # the largest message of several pieces
_DATA_TAG = 2 << 56
_PACK_BELOW_BYTES = 64 << 10  # a longer piece costs less as a message of its own than two copies do
_HEAD = struct.Struct("<4sBxxxII")
_MAGIC = b"LSUX"


class MessageKind(IntEnum):
    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    READ = 4
    READY = 5
    WRITE = 6
    DONE = 7
    BYE = 8


@dataclass(frozen=True, slots=True)
class ControlMessage:
    """link: the receiver's number, 0 in HELLO. body: the JSON of HELLO, spans, or a reason."""

    kind: MessageKind
    link: int
    part: int = 0
    body: bytes = b""

    def pack(self) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        raw = _HEAD.pack(_MAGIC, self.kind, self.link, self.part) + self.body
        return np.frombuffer(raw, np.uint8)


def unpack(raw: bytes) -> ControlMessage:
    """Errors: TransferError."""
    try:
        magic, kind, link, part = _HEAD.unpack_from(raw)
        message = ControlMessage(MessageKind(kind), link, part, raw[_HEAD.size :])
    except (struct.error, ValueError) as error:
        raise TransferError("ucx: not a message of this transport") from error
    if magic != _MAGIC:
        raise TransferError("ucx: not a message of this transport")
    return message


def parting(message: ControlMessage) -> str:
    """Returns why a peer that says BYE leaves. A peer of an earlier version says no reason."""
    return f"the peer has left: {message.body.decode(errors='replace')}".removesuffix(": ")


def pack_address(worker: bytes) -> str:
    return b64encode(worker + zlib.crc32(worker).to_bytes(4, "little")).decode()


def unpack_address(text: str) -> bytes:
    """Checks the checksum, because UCX ends the process for a garbled address. Errors: ValueError,
    TypeError."""
    raw = b64decode(text, validate=True)
    if zlib.crc32(raw[:-4]).to_bytes(4, "little") != raw[-4:]:
        raise ValueError("the worker's address is garbled")
    return raw[:-4]


def data_tag(link: int, part: int) -> int:
    return _DATA_TAG | (link & 0xFFFFFF) << 32 | part & 0xFFFFFFFF


def part_spans(body: bytes) -> Spans:
    """Unpacks the spans of a request. Errors: TransferError for a body that is not one part."""
    count, rest = divmod(len(body), SPAN_BYTES)
    if rest or count > PART_SPANS:
        raise TransferError("ucx: malformed spans")
    return unpack_spans(body, count)


def parts(batch: Batch) -> Iterator[Batch]:
    """Cuts a batch, which is not empty, at every PART_BYTES and after PART_SPANS spans."""
    if len(batch.local.lengths) <= PART_SPANS and batch.local.total_bytes <= PART_BYTES:
        yield batch
        return
    for local, remote in zip(split(batch.local, PART_BYTES), split(batch.remote, PART_BYTES), strict=True):
        for begin in range(0, len(local.lengths), PART_SPANS):
            chosen = slice(begin, begin + PART_SPANS)
            yield Batch(local.cut(chosen), remote.cut(chosen))


def packed(lengths: Sequence[int]) -> Iterator[slice]:
    """Yields the pieces of each message, on both sides alike: runs of small pieces, and large pieces
    alone."""
    begin, size, joinable = 0, 0, True
    for index, length in enumerate(lengths):
        small = length < _PACK_BELOW_BYTES
        if index > begin and not (joinable and small and size + length <= PACK_BYTES):
            yield slice(begin, index)
            begin, size = index, 0
        joinable = small
        size += length
    if lengths:
        yield slice(begin, len(lengths))
