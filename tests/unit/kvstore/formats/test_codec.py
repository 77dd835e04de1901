"""Blocks through all formats: what comes back, and what is refused."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from llmserve.core.errors import BlockDamaged, BlockUnreadable, KeyUnknown, StartFailed
from llmserve.kvstore.formats import (
    BlockCodec,
    BlockFormat,
    BlockShape,
    Compress,
    Element,
    Encoded,
    KeyRing,
    Quantize,
    grouped,
)
from llmserve.kvstore.formats.header import MAX_HEADER_BYTES, Header

Block = npt.NDArray[np.uint16]
OLD, NEW = ("2025", bytes(32)), ("2026", bytes(range(32)))
KEYS = KeyRing([OLD, NEW])
KEY = b"block hash and rank"
FORMATS = [BlockFormat(*stages) for stages in itertools.product(Quantize, Compress, (False, True))]
SEALED = [form for form in FORMATS if form.encrypt]
each_format = pytest.mark.parametrize("form", FORMATS, ids=str)


def encoded(codec: BlockCodec, block: Block) -> Encoded:
    kept = codec.encode(KEY, block.data, memoryview(bytearray(codec.bound_bytes)))
    return Encoded(kept.header, memoryview(bytes(kept.payload)))


def decoded(codec: BlockCodec, stored: Encoded, block: Block) -> Block:
    out = np.zeros_like(block)
    codec.decode(KEY, stored.header, stored.payload, out.data)
    return out


def codec_for(shape: BlockShape, form: BlockFormat) -> BlockCodec:
    return BlockCodec(shape, form, KEYS)


def floats(block: Block) -> npt.NDArray[np.float32]:
    return (block.astype(np.uint32) << 16).view(np.float32)


@each_format
def test_a_block_comes_back(form: BlockFormat, shape: BlockShape, block: Block) -> None:
    codec = codec_for(shape, form)
    back = decoded(codec, encoded(codec, block), block)
    if form.quantize is Quantize.NONE:
        assert (back == block).all()
    else:
        assert np.abs(floats(back) - floats(block)).max() <= np.abs(floats(block)).max() / 16


@each_format
def test_any_codec_of_the_size_reads_what_another_wrote(
    form: BlockFormat, shape: BlockShape, block: Block
) -> None:
    """The manifest changed in between, and so did our idea of the layout."""
    writer = codec_for(shape, form)
    stored = encoded(writer, block)
    expected = decoded(writer, stored, block)
    for reader in (codec_for(grouped(Element.BFLOAT16, shape.size_bytes), other) for other in FORMATS):
        assert (decoded(reader, stored, block) == expected).all()


@each_format
def test_headers_and_payloads_keep_to_their_bounds(
    form: BlockFormat, shape: BlockShape, block: Block
) -> None:
    codec = codec_for(shape, form)
    noise = np.random.default_rng(2).integers(0, 0x7F00, block.size, np.uint16)
    for data in (block, noise):
        stored = encoded(codec, data)
        assert len(stored.header) <= MAX_HEADER_BYTES
        assert len(stored.payload) <= codec.bound_bytes


def test_raw_blocks_are_not_copied(shape: BlockShape, block: Block) -> None:
    codec = codec_for(shape, BlockFormat())
    kept = codec.encode(KEY, block.data, memoryview(bytearray(codec.bound_bytes)))
    assert np.shares_memory(np.frombuffer(kept.payload, np.uint8), block)
    before = block.copy()
    codec.decode(KEY, kept.header, kept.payload, block.data)
    assert (block == before).all()


@pytest.mark.parametrize("form", [form for form in FORMATS if form.quantize is not Quantize.NONE], ids=str)
def test_what_cannot_be_quantized_is_stored_without(
    form: BlockFormat, shape: BlockShape, block: Block
) -> None:
    block[100] = 0x7F80  # infinity
    codec = codec_for(shape, form)
    stored = encoded(codec, block)
    assert Header.unpack(stored.header).quantize is Quantize.NONE
    assert (decoded(codec, stored, block) == block).all()


# -- keys


def test_old_keys_still_decrypt_and_new_blocks_get_the_newest(shape: BlockShape, block: Block) -> None:
    form = BlockFormat(encrypt=True)
    stored = encoded(BlockCodec(shape, form, KeyRing([OLD])), block)
    rotated = BlockCodec(shape, form, KeyRing([OLD, NEW]))
    assert (decoded(rotated, stored, block) == block).all()
    seal = Header.unpack(encoded(rotated, block).header).seal
    assert seal
    assert seal.key_id == NEW[0]


@pytest.mark.parametrize("keys", [None, KeyRing([NEW])])
def test_a_key_that_is_gone_is_a_miss(shape: BlockShape, block: Block, keys: KeyRing | None) -> None:
    stored = encoded(BlockCodec(shape, BlockFormat(encrypt=True), KeyRing([OLD])), block)
    with pytest.raises(KeyUnknown, match="'2025'"):
        decoded(BlockCodec(shape, BlockFormat(), keys), stored, block)


def test_another_key_of_the_same_id_is_damage(shape: BlockShape, block: Block) -> None:
    stored = encoded(BlockCodec(shape, BlockFormat(encrypt=True), KeyRing([OLD])), block)
    with pytest.raises(BlockDamaged, match="2025"):
        decoded(BlockCodec(shape, BlockFormat(), KeyRing([(OLD[0], NEW[1])])), stored, block)


def test_nothing_of_the_block_can_be_seen(shape: BlockShape, block: Block) -> None:
    codec = codec_for(shape, BlockFormat(encrypt=True))
    first, second = encoded(codec, block), encoded(codec, block)
    assert bytes(first.payload) != bytes(second.payload), "each has a nonce of its own"
    assert bytes(block.tobytes()[:8]) not in bytes(first.payload)


@pytest.mark.parametrize("form", SEALED, ids=str)
def test_one_flipped_byte_anywhere_is_a_miss(form: BlockFormat, shape: BlockShape, block: Block) -> None:
    codec = codec_for(shape, form)
    stored = encoded(codec, block)
    for place in range(0, len(stored.payload), 97):
        damaged = bytearray(stored.payload)
        damaged[place] ^= 0x10
        with pytest.raises(BlockDamaged):
            decoded(codec, Encoded(stored.header, memoryview(damaged)), block)


@pytest.mark.parametrize("form", SEALED, ids=str)
def test_a_block_is_not_taken_for_another(form: BlockFormat, shape: BlockShape, block: Block) -> None:
    codec = codec_for(shape, form)
    one, two = encoded(codec, block), encoded(codec, block)
    with pytest.raises(BlockDamaged):
        decoded(codec, Encoded(two.header, one.payload), block)
    with pytest.raises(BlockDamaged):
        codec.decode(b"another", one.header, one.payload, np.zeros_like(block).data)


# -- damage


@each_format
def test_payloads_of_other_lengths_are_misses(form: BlockFormat, shape: BlockShape, block: Block) -> None:
    codec = codec_for(shape, form)
    stored = encoded(codec, block)
    longer = memoryview(bytes(stored.payload) + bytes(1))
    for payload in (stored.payload[:0], stored.payload[:5], stored.payload[:-1], longer):
        with pytest.raises(BlockUnreadable):
            decoded(codec, Encoded(stored.header, payload), block)


@each_format
def test_a_block_of_another_size_is_a_miss(form: BlockFormat, shape: BlockShape, block: Block) -> None:
    stored = encoded(codec_for(shape, form), block)
    smaller = grouped(Element.BFLOAT16, shape.size_bytes // 2)
    with pytest.raises(BlockDamaged):
        decoded(codec_for(smaller, form), stored, block[: block.size // 2])


# -- starts and threads


def test_formats_that_cannot_be(shape: BlockShape) -> None:
    with pytest.raises(StartFailed, match="key"):
        BlockCodec(shape, BlockFormat(encrypt=True))
    with pytest.raises(StartFailed, match="quantized"):
        BlockCodec(grouped(Element.OPAQUE, 4096), BlockFormat(Quantize.INT8))
    long = BlockShape.parse("bfloat16 " + " ".join(f"{repeats}(t128 c64)" for repeats in range(1, 100)))
    with pytest.raises(StartFailed, match="too long"):
        BlockCodec(long, BlockFormat())


@each_format
def test_a_codec_for_each_thread(form: BlockFormat, shape: BlockShape, block: Block) -> None:
    def work(seed: int) -> bool:
        codec = codec_for(shape, form)
        data = np.roll(block, seed)
        first = decoded(codec, encoded(codec, data), data)
        return all((decoded(codec, encoded(codec, data), data) == first).all() for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
