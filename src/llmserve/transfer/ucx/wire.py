"""Control messages of the ucx transport, and how a batch is cut into parts.

A connection is a pair of link numbers, each unique in its process. HELLO carries the requester's number and
WELCOME the owner's, in the field of a part. Then, for each part of a batch, numbered by the requester:
  read:   READ, spans ->                              <- the bytes
  write:  WRITE, spans ->   <- READY    the bytes ->  <- DONE
The bytes of a part are one message, which carries the number of the link that receives it; that has posted
the receive before. REFUSED and BYE, each with a reason, end the connection. Numbers are little-endian.
"""

import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Batch, Spans
from llmserve.transfer.spans import SPAN_BYTES, split, unpack_spans

VERSION = 2
CONTROL_TAG = 1 << 56
PART_BYTES = 16 << 20
PART_SPANS = 4096
_DATA_TAG = 2 << 56
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
    if rest or not 0 < count <= PART_SPANS:
        raise TransferError("ucx: malformed spans")
    spans = unpack_spans(body, count)
    if spans.lengths.min() < 1:
        raise TransferError("ucx: malformed spans")
    return spans


def parts(batch: Batch) -> Iterator[Batch]:
    """Cuts a batch, which is not empty, at every PART_BYTES and after PART_SPANS spans."""
    if len(batch.local.lengths) <= PART_SPANS and batch.local.total_bytes <= PART_BYTES:
        yield batch
        return
    for local, remote in zip(split(batch.local, PART_BYTES), split(batch.remote, PART_BYTES), strict=True):
        for begin in range(0, len(local.lengths), PART_SPANS):
            chosen = slice(begin, begin + PART_SPANS)
            yield Batch(local.cut(chosen), remote.cut(chosen))
