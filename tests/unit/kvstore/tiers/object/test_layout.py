"""The bytes of a pack: there and back, and no changed byte goes unseen."""

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from llmserve.kvstore.tiers.base import BlobKey
from llmserve.kvstore.tiers.object.layout import (
    FOOTER_BYTES,
    Footer,
    PackDamaged,
    PackEntry,
    decode_footer,
    decode_index,
    encode_tail,
    record_checksum,
)

ENTRIES = [PackEntry(BlobKey(b"k%d" % n), 1000 * n, 7, 900 + n, 2**63 + n) for n in range(3)]
RECORDS = bytes(3000)


def decoded(pack: bytes) -> list[PackEntry]:
    footer = decode_footer(memoryview(pack), len(pack))
    return decode_index(memoryview(pack)[-FOOTER_BYTES - footer.index_bytes : -FOOTER_BYTES], footer)


@given(
    st.lists(
        st.builds(
            PackEntry,
            st.binary(min_size=1, max_size=64).map(BlobKey),
            st.integers(0, 2**40),
            st.integers(0, 1024),
            st.integers(0, 2**40),
            st.integers(0, 2**64 - 1),
        )
    )
)
def test_entries_come_back(entries: list[PackEntry]) -> None:
    assert decoded(RECORDS + encode_tail(entries, len(RECORDS))) == entries


@pytest.mark.parametrize("bit", [1, 0x80])
def test_no_changed_byte_of_the_tail_is_believed(bit: int) -> None:
    tail = encode_tail(ENTRIES, len(RECORDS))
    for position in range(len(tail)):
        changed = bytearray(RECORDS + tail)
        changed[len(RECORDS) + position] ^= bit
        with pytest.raises(PackDamaged):
            decoded(bytes(changed))


@pytest.mark.parametrize("cut", [1, 10, FOOTER_BYTES, FOOTER_BYTES + 20])
def test_a_pack_cut_short_or_grown_is_damaged(cut: int) -> None:
    pack = RECORDS + encode_tail(ENTRIES, len(RECORDS))
    for other in (pack[:-cut], pack + bytes(cut), bytes(cut) + pack):
        with pytest.raises(PackDamaged):
            decoded(other)


def test_the_checksum_is_of_key_header_and_data() -> None:
    data = memoryview(b"data")
    sums = {
        record_checksum(b"key", b"head", data),
        record_checksum(b"kez", b"head", data),
        record_checksum(b"key", b"heaf", data),
        record_checksum(b"key", b"head", memoryview(b"dato")),
    }
    assert len(sums) == 4


@pytest.mark.parametrize("size_bytes", [1, 20, 33, 200])
def test_an_index_that_somebody_made_up(size_bytes: int) -> None:
    """Its checksum fits, and its last entry or key does not."""
    index = b"\xff" * size_bytes
    footer = Footer(size_bytes, size_bytes, 1, xxhash.xxh3_64_intdigest(index), b"")
    with pytest.raises(PackDamaged, match=r"end of the index|cut off"):
        decode_index(memoryview(index), footer)
