import hypothesis.strategies as st
import pytest
from hypothesis import given

from llmserve.core.errors import TransferError
from llmserve.engines.kv_transfer.layout.blocks import KvLayout
from llmserve.engines.kv_transfer.layout.geometry import KvGeometry
from llmserve.transfer.base import Region, Spans

SIZES = (100, 8)


def layout(blocks: int = 10) -> KvLayout:
    regions = tuple(Region(1000 * i, size * blocks) for i, size in enumerate(SIZES))
    return KvLayout(regions, KvGeometry(SIZES, 4, "bfloat16", "LBHNC", "model"))


def rows(spans: Spans) -> list[tuple[int, int, int]]:
    return list(zip(spans.regions.tolist(), spans.offsets.tolist(), spans.lengths.tolist(), strict=True))


def bytes_of(spans: Spans) -> list[tuple[int, int]]:
    return [(region, offset + i) for region, offset, length in rows(spans) for i in range(length)]


def test_adjacent_blocks_are_one_span_a_layer() -> None:
    batch = layout().batch([1, 2, 3], [5, 6, 7])
    assert rows(batch.local) == [(0, 100, 300), (1, 8, 24)]
    assert rows(batch.remote) == [(0, 500, 300), (1, 40, 24)]


def test_blocks_join_only_when_adjacent_on_both_sides() -> None:
    assert len(rows(layout().batch([1, 2], [5, 7]).local)) == 4
    assert len(rows(layout().batch([2, 1], [6, 5]).local)) == 4


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_a_batch_pairs_every_byte_of_every_layer(pairs: list[tuple[int, int]]) -> None:
    local, remote = [a for a, _ in pairs], [b for _, b in pairs]
    batch = layout().batch(local, remote)
    expected = [
        ((layer, a * size + i), (layer, b * size + i))
        for layer, size in enumerate(SIZES)
        for a, b in pairs
        for i in range(size)
    ]
    assert list(zip(bytes_of(batch.local), bytes_of(batch.remote), strict=True)) == expected


@pytest.mark.parametrize(("local", "remote"), [([], []), ([1], []), ([1], [1, 2])])
def test_lists_that_do_not_match_are_refused(local: list[int], remote: list[int]) -> None:
    with pytest.raises(TransferError):
        layout().batch(local, remote)


def test_the_smallest_layer_counts() -> None:
    regions = (Region(0, 1000), Region(0, 79))
    assert KvLayout(regions, KvGeometry(SIZES, 4)).total_blocks == 9


@pytest.mark.parametrize("sizes", [(), (100,), (100, 0)])
def test_a_layout_without_sense_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(TransferError):
        KvLayout((Region(0, 1), Region(0, 1)), KvGeometry(sizes, 4))
