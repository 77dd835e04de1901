"""Gathering and scattering, against copies made span by span."""

from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given

from llmserve.transfer.base import Spans
from llmserve.transfer.collective.rows import Copier, DeviceCopier, HostCopier, gather, row_width, scatter

SIZE = 4096
SLOTS = 16
COPIERS: dict[str, Callable[[], Copier]] = {"host": HostCopier, "device": lambda: DeviceCopier(torch)}
Slots = st.lists(st.tuples(st.integers(0, 1), st.integers(0, SLOTS - 1)), min_size=1, unique=True)


@pytest.fixture(scope="module", params=COPIERS)
def copier(request: pytest.FixtureRequest) -> Copier:
    return COPIERS[request.param]()


def in_slots(slots: list[tuple[int, int]], offset: int, length: int) -> Spans:
    regions, numbers = np.array(slots, np.int64).reshape(-1, 2).T
    return Spans(regions, numbers * (SIZE // SLOTS) + offset, np.full(len(slots), length, np.int64))


def memory() -> list[npt.NDArray[np.uint8]]:
    random = np.random.default_rng(5)
    return [random.integers(0, 256, SIZE + 7, np.uint8) for _ in range(2)]  # no whole number of rows


# Rows of a block, narrow rows, and bytes; SIZE // SLOTS is 256.
@pytest.mark.parametrize(("offset", "length"), [(0, 256), (64, 128), (16, 32), (3, 101)])
@given(slots=Slots)
def test_bytes_arrive_where_they_belong(
    copier: Copier, offset: int, length: int, slots: list[tuple[int, int]]
) -> None:
    spans, source, target = in_slots(slots, offset, length), memory(), memory()
    target = [np.zeros_like(region) for region in target]
    expected = [np.zeros_like(region) for region in target]
    packed = []
    for region, start in zip(spans.regions, spans.offsets, strict=True):
        packed.append(source[region][start : start + length])
        expected[region][start : start + length] = packed[-1]

    staging = torch.zeros(len(slots) * length, dtype=torch.uint8)
    gather(copier, [torch.from_numpy(region) for region in source], spans, staging)
    assert np.array_equal(staging.numpy(), np.concatenate(packed))

    scatter(copier, staging, [torch.from_numpy(region) for region in target], spans)
    assert all(np.array_equal(*pair) for pair in zip(target, expected, strict=True))


def test_spans_of_different_lengths(copier: Copier) -> None:
    lengths = np.array([64, 192, 128] * 4, np.int64)
    spans = Spans(np.zeros(12, np.int64), np.arange(12) * 256, lengths)
    region = torch.from_numpy(memory()[0])
    packed = torch.zeros(int(lengths.sum()), dtype=torch.uint8)
    gather(copier, [region], spans, packed)
    expected = [region.numpy()[i * 256 : i * 256 + n] for i, n in enumerate(lengths.tolist())]
    assert np.array_equal(packed.numpy(), np.concatenate(expected))


@pytest.mark.parametrize(
    ("offsets", "lengths", "width"), [([0], [512], 512), ([0, 96], [64, 32], 32), ([5, 7], [9, 3], 1)]
)
def test_rows_are_as_wide_as_can_be(offsets: list[int], lengths: list[int], width: int) -> None:
    assert row_width(np.array(offsets, np.int64), np.array(lengths, np.int64)) == width
