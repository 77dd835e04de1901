"""Requests as they come out of a socket: in one piece, in many, and with what follows them."""

import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from llmserve.transfer.base import Spans
from llmserve.transfer.twosided import wire
from llmserve.transfer.twosided.wire import TransferOperation


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        right.settimeout(30)
        yield left, right


def spans(count: int) -> Spans:
    numbers = np.arange(count, dtype=np.int64)
    return Spans(numbers % 3, numbers * 100, numbers + 1)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 500])
def test_a_request_is_read_to_its_end_and_no_further(
    pair: tuple[socket.socket, socket.socket], count: int
) -> None:
    wire.send_request(pair[0], TransferOperation.WRITE, spans(count))
    if count:  # the bytes of a write follow at once
        pair[0].sendall(b"bytes")
    operation, found = wire.receive_request(pair[1])
    assert operation is TransferOperation.WRITE
    for ours, theirs in zip(columns(spans(count)), columns(found), strict=True):
        assert np.array_equal(ours, theirs)
    if count:
        assert pair[1].recv(100) == b"bytes"


def columns(some: Spans) -> tuple[np.ndarray, ...]:
    return some.regions, some.offsets, some.lengths


def test_a_request_may_come_in_pieces(pair: tuple[socket.socket, socket.socket]) -> None:
    source, target = socket.socketpair()
    with source, target:
        wire.send_request(source, TransferOperation.READ, spans(5))
        message = target.recv(4096)

    def dribble() -> None:
        for start in range(0, len(message), 50):
            pair[0].sendall(message[start : start + 50])
            time.sleep(0.001)

    sender = threading.Thread(target=dribble)
    sender.start()
    operation, found = wire.receive_request(pair[1])
    sender.join()
    assert operation is TransferOperation.READ
    assert found.lengths.tolist() == [1, 2, 3, 4, 5]


def test_a_peer_that_leaves_within_a_request_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(bytes(10))
    pair[0].close()
    with pytest.raises(ConnectionError):
        wire.receive_request(pair[1])
