"""Scatter and gather of the tcp transport, over a pair of sockets."""

import itertools
import socket
import threading
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from llmserve.transfer.base import Region, Spans
from llmserve.transfer.sockets import _without, receive, send
from llmserve.transfer.spans import RegionTable
from llmserve.transfer.tcp import iovec

SIZE = 4 << 20


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def memory(value: int) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], RegionTable]:
    array = np.full(SIZE, value, np.uint8)
    return array, RegionTable.of(
        [Region(array.ctypes.data, SIZE // 2), Region(array.ctypes.data + SIZE // 2, SIZE // 2)]
    )


@pytest.mark.parametrize("count", [1, 1024, 1025, 2500])
def test_pieces_go_through_in_order(pair: tuple[socket.socket, socket.socket], count: int) -> None:
    random = np.random.default_rng(count)
    lengths = random.integers(1, 500, count)
    regions, offsets = random.integers(0, 2, count), random.integers(0, SIZE // 2 - 500, count)
    source, from_memory = memory(0)
    source[:] = random.integers(0, 256, SIZE, np.uint8)
    target, to_memory = memory(0)
    order = np.zeros(count, np.int64), np.cumsum(lengths) - lengths
    sender = threading.Thread(
        target=send, args=(pair[0], iovec(from_memory, Spans(regions, offsets, lengths)))
    )
    sender.start()
    receive(pair[1], iovec(to_memory, Spans(*order, lengths)))
    sender.join()
    starts = regions * (SIZE // 2) + offsets
    pieces = [source[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    assert np.array_equal(target[: lengths.sum()], np.concatenate(pieces))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.data())
def test_what_is_left_follows_what_was_done(lengths: list[int], data: st.DataObject) -> None:
    vector = np.array([(100 * i, length) for i, length in enumerate(lengths)], np.int64)
    every = _addresses(vector)
    done = data.draw(st.integers(1, len(every)))
    assert _addresses(_without(vector, done)) == every[done:]


def _addresses(vector: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> list[int]:
    pieces = (range(address, address + length) for address, length in vector.tolist())
    return list(itertools.chain.from_iterable(pieces))


def test_a_peer_that_has_left_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    vector = iovec(memory(1)[1], Spans(np.array([0]), np.array([0]), np.array([1000])))
    pair[0].close()
    with pytest.raises(ConnectionError, match="closed the connection"):
        receive(pair[1], vector)
    with pytest.raises(BrokenPipeError):
        send(pair[1], vector)
