"""Messages of several pieces, between two workers of UCX in this process."""

import ctypes
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from llmserve.core.errors import TransportUnavailable
from llmserve.transfer.base import Int64Array
from llmserve.transfer.spans import vectors
from llmserve.transfer.ucx.library import Bytes, MessageInFlight, UcxEndpoint, UcxWorker
from tests.support.transports import need_transport

PIECE_BYTES = 16 << 10
PIECES = 100
SECONDS = 10.0
TAG = 7


class Workers(NamedTuple):
    """near has the ends of both connections: to and from far."""

    near: UcxWorker
    far: UcxWorker
    to_far: UcxEndpoint
    to_near: UcxEndpoint

    def deliver(self) -> None:
        """Gives a message that was sent the time to arrive."""
        for _ in range(1000):
            self.near.progress()
            self.far.progress()

    def finish(self, *requests: MessageInFlight) -> None:
        deadline = time.monotonic() + SECONDS
        while not all(request.over for request in requests):
            assert time.monotonic() < deadline
            self.near.progress()
            self.far.progress()


@pytest.fixture
def workers() -> Iterator[Workers]:
    need_transport("ucx")
    near, far = UcxWorker(), UcxWorker()
    both = Workers(near, far, near.connect(far.address), far.connect(near.address))
    yield both
    both.to_far.close()
    both.to_near.close()
    near.close()
    far.close()


class Pieces:
    """Every second piece of an array, backwards."""

    def __init__(self, memory: Bytes) -> None:
        self.memory = memory
        offsets = np.arange(PIECES, dtype=np.int64)[::-1] * 2 * PIECE_BYTES
        self.vectors: Int64Array = vectors(
            memory.ctypes.data + offsets, np.full(PIECES, PIECE_BYTES, np.int64)
        )

    @property
    def content(self) -> Bytes:
        return self.memory.reshape(PIECES, 2, PIECE_BYTES)[::-1, 0].ravel()

    @property
    def between(self) -> Bytes:
        return self.memory.reshape(PIECES, 2, PIECE_BYTES)[:, 1]


@pytest.fixture
def source() -> Pieces:
    noise = np.random.default_rng(3).integers(0, 256, 2 * PIECES * PIECE_BYTES, np.uint8)
    return Pieces(noise)


@pytest.fixture
def target() -> Pieces:
    return Pieces(np.zeros(2 * PIECES * PIECE_BYTES, np.uint8))


def test_bytes_arrive_where_they_belong(workers: Workers, source: Pieces, target: Pieces) -> None:
    received = workers.to_near.receive_pieces(target.vectors, TAG)
    assert not received.over
    sent = workers.to_far.send_pieces(source.vectors, TAG)
    workers.finish(sent, received)
    assert (sent.failure, received.failure) == ("", "")
    assert np.array_equal(target.content, source.content)
    assert not target.between.any()


def test_the_other_end_may_have_all_bytes_in_one_piece(workers: Workers, source: Pieces) -> None:
    whole = np.zeros(PIECES * PIECE_BYTES, np.uint8)
    received = workers.to_near.receive(whole, TAG)
    workers.finish(workers.to_far.send_pieces(source.vectors, TAG), received)
    assert np.array_equal(whole, source.content)


@pytest.mark.parametrize("comes_first", [False, True])
@pytest.mark.parametrize(("count", "failure"), [(PIECES - 1, "Message truncated"), (PIECES, "")])
def test_a_message_that_does_not_fill_its_pieces_has_failed(
    workers: Workers, source: Pieces, target: Pieces, count: int, failure: str, comes_first: bool
) -> None:
    vectors = source.vectors[:count].copy()
    if comes_first:
        sent = workers.to_far.send_pieces(vectors, TAG)
        workers.deliver()
    received = workers.to_near.receive_pieces(target.vectors, TAG)
    if not comes_first:
        sent = workers.to_far.send_pieces(vectors, TAG)
    workers.finish(sent, received)
    assert received.failure == failure


def test_a_small_message_that_is_there_before_its_receive_is_checked_too(workers: Workers) -> None:
    memory = np.zeros(64, np.uint8)
    halves = vectors(memory.ctypes.data + np.array([0, 40]), np.array([8, 8]))
    sent = workers.to_far.send_pieces(halves[:1].copy(), TAG)
    workers.deliver()
    received = workers.to_near.receive_pieces(halves, TAG)
    workers.finish(sent, received)
    assert received.failure == "Message truncated"


def test_a_message_that_nobody_sends_ends_when_its_connection_is_closed(
    workers: Workers, target: Pieces
) -> None:
    received = workers.to_near.receive_pieces(target.vectors, TAG)
    workers.to_near.close()
    workers.finish(received)
    assert received.failure


def test_a_message_that_nobody_receives_ends_when_its_connection_is_closed(
    workers: Workers, source: Pieces
) -> None:
    sent = workers.to_far.send_pieces(source.vectors, TAG)
    workers.to_far.close()
    workers.finish(sent)
    assert sent.failure


def test_a_closed_connection_takes_no_message(workers: Workers, source: Pieces) -> None:
    workers.to_far.close()
    for request in (
        workers.to_far.send_pieces(source.vectors, TAG),
        workers.to_far.receive_pieces(source.vectors, TAG),
    ):
        assert request.over
        assert "closed" in request.failure


@pytest.mark.parametrize(
    ("is_there", "reason"),
    [(False, "OSError: libucp.so.0 is not loaded"), (True, "AttributeError: .*ucp_tag_send_nbx")],
    ids=["no library", "no symbol"],
)
def test_a_ucx_without_these_functions_is_refused(
    monkeypatch: pytest.MonkeyPatch, is_there: bool, reason: str
) -> None:
    need_transport("ucx")

    def library(name: str, mode: int) -> object:
        if not is_there:
            raise OSError(f"{name} is not loaded")
        return object()

    monkeypatch.setattr(ctypes, "CDLL", library)
    with pytest.raises(TransportUnavailable, match=f"ucx: no worker: {reason}"):
        UcxWorker()
