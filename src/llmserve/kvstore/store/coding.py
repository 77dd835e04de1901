"""Encodes blocks of DRAM to blobs of a lower tier and back, on a thread of the tier's own.

A call that is cancelled ends when the thread no longer touches the memory.
"""

import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import xxhash

from llmserve.core.aio import run_in_thread
from llmserve.core.errors import BlockDamaged, BlockUnreadable
from llmserve.kvstore.blocks import StoredBlock, part_key
from llmserve.kvstore.formats import BlockCodec, BlockShape, Element, Header, grouped
from llmserve.kvstore.tiers.base import ALIGNMENT_BYTES, Blob, BlobKey, ReadResult, ReadTarget, TierOutcome

_T = TypeVar("_T")
MakeCodec = Callable[[BlockShape], BlockCodec]
_MOST_CODECS = 16  # a cluster has one or two; workers may be replaced by others


@dataclass(frozen=True, slots=True)
class Incoming:
    """A part of a block to bring up. view: memory it goes to. shape: text form; empty when unknown."""

    key: BlobKey
    view: memoryview
    shape: str = ""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A block to write down. views: memory of its parts, which the caller keeps until `ended` is called,
    once, with the outcome. checksums: one for each part, from when it was stored."""

    block: StoredBlock
    views: tuple[memoryview, ...]
    checksums: tuple[int, ...]
    ended: Callable[[TierOutcome], object]

    @property
    def size_bytes(self) -> int:
        return sum(self.block.part_bytes)


@dataclass(frozen=True, slots=True)
class StoredParts:
    """The parts of a block and the shape of each; empty unless DONE."""

    outcome: TierOutcome
    reason: str = ""
    parts: tuple[memoryview, ...] = ()
    shapes: tuple[str, ...] = ()


class _Codecs:
    """A tier's codecs, one for each shape of parts. Their scratch memory allows one thread at a time."""

    def __init__(self, make: MakeCodec) -> None:
        self._make = make
        self._made: dict[tuple[str, int], BlockCodec] = {}

    def get(self, shape: str, size_bytes: int) -> BlockCodec:
        """shape: text of the part's shape; empty when unknown. Errors: FormatUnknown."""
        name = (shape, size_bytes)
        if name not in self._made:
            if len(self._made) >= _MOST_CODECS:
                self._made.clear()
            self._made[name] = self._make(
                BlockShape.parse(shape) if shape else grouped(Element.OPAQUE, size_bytes)
            )
        return self._made[name]


class Coder:
    """Life: any calls -> close."""

    def __init__(self, make_codec: MakeCodec, name: str) -> None:
        self._codecs = _Codecs(make_codec)
        self._thread = ThreadPoolExecutor(1, name)

    def close(self) -> None:
        self._thread.shutdown()

    async def encode(self, outgoing: Outgoing) -> list[Blob] | None:
        """None: the memory no longer has the bytes that were stored there."""
        return await run_in_thread(self._thread, partial(self._encode, outgoing))

    async def decode(self, one: Incoming, header: bytes, payload: memoryview) -> int:
        """Decodes into the view. Returns the checksum (xxh3) of the view. Errors: BlockUnreadable."""
        return await run_in_thread(self._thread, partial(self._decode, one, header, payload))

    async def decode_all(self, targets: Sequence[ReadTarget], results: Sequence[ReadResult]) -> StoredParts:
        """Decodes the parts of one block, all of them read, into memory of their own."""
        try:
            return await run_in_thread(self._thread, partial(self._decode_all, targets, results))
        except BlockDamaged as error:
            return StoredParts(TierOutcome.CORRUPT, error.message)
        except BlockUnreadable as error:
            return StoredParts(TierOutcome.FAILED, error.message)

    # -- parts

    def _encode(self, outgoing: Outgoing) -> list[Blob] | None:
        blobs, block = [], outgoing.block
        for part, (view, checksum) in enumerate(zip(outgoing.views, outgoing.checksums, strict=True)):
            codec, key = self._codecs.get(block.shape(part), len(view)), part_key(block.key, part)
            encoded = codec.encode(key, view, aligned(codec.bound_bytes))
            if xxhash.xxh3_64_intdigest(view) != checksum:
                return None
            blobs.append(Blob(key, encoded.header, encoded.payload))
        return blobs

    def _decode(self, one: Incoming, header: bytes, payload: memoryview) -> int:
        if payload.obj is one.view.obj and not Header.unpack(header).is_raw:
            payload = memoryview(bytes(payload))  # it was read to where the block goes
        self._codecs.get(one.shape, len(one.view)).decode(one.key, header, payload, one.view)
        return xxhash.xxh3_64_intdigest(one.view)

    def _decode_all(self, targets: Sequence[ReadTarget], results: Sequence[ReadResult]) -> StoredParts:
        parts, shapes = [], []
        for target, result in zip(targets, results, strict=True):
            shapes.append(Header.unpack(result.header).shape)
            size = BlockShape.parse(shapes[-1]).size_bytes
            parts.append(aligned(size)[:size])
            payload = target.buffer[: result.length_bytes]
            self._codecs.get(shapes[-1], size).decode(target.key, result.header, payload, parts[-1])
        return StoredParts(TierOutcome.DONE, "", tuple(parts), tuple(shapes))


def room_for(view: memoryview, size: int) -> memoryview:
    """Memory that a blob of this size is read to: in place, if it fits."""
    return view if size <= len(view) else aligned(size)


def aligned(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES))
