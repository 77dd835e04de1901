"""How an end of a ucx connection leaves, without UCX."""

from typing import cast

import numpy as np
import pytest

from llmserve.transfer.base import Int64Array, Region, Spans
from llmserve.transfer.ucx import wire
from llmserve.transfer.ucx.library import Bytes, UcxEndpoint
from llmserve.transfer.ucx.link import RegionViews, UcxLink

FAR_LATER = 1e12
PIECE_BYTES = 4096
MEMORY: Bytes = np.random.default_rng(5).integers(0, 256, 8 * PIECE_BYTES, np.uint8)


class FakeRequest:
    def __init__(self, over: bool) -> None:
        self.over = over
        self.failure = ""


class FakeEndpoint:
    """Control messages are over at once, data when a test says so."""

    def __init__(self) -> None:
        self.alive = True
        self.closed = False
        self.said: list[wire.ControlMessage] = []
        self.data: list[FakeRequest] = []
        self.sizes: list[list[int]] = []  # of the pieces of each message
        self.bytes = b""  # of the last message of one piece

    def send(self, buffer: Bytes, tag: int) -> FakeRequest:
        if tag == wire.CONTROL_TAG:
            self.said.append(wire.unpack(buffer.tobytes()))
            return FakeRequest(over=True)
        self.sizes.append([len(buffer)])
        self.bytes = buffer.tobytes()
        return self._moving()

    def send_pieces(self, vectors: Int64Array, tag: int) -> FakeRequest:
        self.sizes.append(vectors[:, 1].tolist())
        return self._moving()

    def _moving(self) -> FakeRequest:
        self.data.append(FakeRequest(over=False))
        return self.data[-1]

    def close(self) -> None:
        self.closed = True


def goodbyes(endpoint: FakeEndpoint) -> list[str]:
    """What the peer makes of all that was said."""
    assert all(message.kind is wire.MessageKind.BYE for message in endpoint.said)
    return [wire.parting(message) for message in endpoint.said]


@pytest.fixture
def endpoint() -> FakeEndpoint:
    return FakeEndpoint()


@pytest.fixture
def link(endpoint: FakeEndpoint) -> UcxLink:
    return UcxLink(1, cast("UcxEndpoint", endpoint))


@pytest.fixture
def views() -> RegionViews:
    return RegionViews([Region(MEMORY.ctypes.data, MEMORY.nbytes)])


def spans(*offsets: int, length: int = PIECE_BYTES) -> Spans:
    column = np.array(offsets, np.int64)
    return Spans(0 * column, column, 0 * column + length)


@pytest.mark.parametrize(
    ("offsets", "sizes"),
    [((0, 2, 4), [1, 1, 1]), ((5, 0, 1, 3), [1, 2, 1]), ((1, 2), [2]), ((1,), [1])],
)
def test_all_pieces_of_a_part_are_one_message_and_neighbours_one_piece(
    link: UcxLink, endpoint: FakeEndpoint, views: RegionViews, offsets: tuple[int, ...], sizes: list[int]
) -> None:
    """Offsets and sizes are in pieces."""
    views.send(link, 1, spans(*(offset * PIECE_BYTES for offset in offsets)))
    assert endpoint.sizes == [[size * PIECE_BYTES for size in sizes]]


def test_the_pieces_of_a_short_part_are_packed(
    link: UcxLink, endpoint: FakeEndpoint, views: RegionViews
) -> None:
    """UCX would send them in fragments, and a receive of those never ends when their sender dies."""
    views.send(link, 1, spans(800, 0, 400, length=100))
    assert endpoint.bytes == b"".join(MEMORY[at : at + 100].tobytes() for at in (800, 0, 400))
    many = spans(*range(0, 8 * PIECE_BYTES, 64), length=1)
    views.send(link, 1, many)
    assert endpoint.sizes == [[300], [many.total_bytes]]


@pytest.mark.parametrize("offsets", [(0,), (0, 2 * PIECE_BYTES)])
def test_an_end_with_data_in_flight_says_bye_and_closes_after_it(
    link: UcxLink, endpoint: FakeEndpoint, views: RegionViews, offsets: tuple[int, ...]
) -> None:
    """UCX crashes when an end closes while its socket is full, and so does the peer."""
    views.send(link, 1, spans(*offsets))
    link.leave("enough")
    link.note_bye()
    link.advance(0.0)
    assert not endpoint.said
    assert not endpoint.closed
    for request in endpoint.data:
        request.over = True
    link.advance(0.0)
    assert goodbyes(endpoint) == ["the peer has left: enough"]
    assert endpoint.closed


def test_an_end_without_data_in_flight_says_bye_at_once_and_waits_for_the_peer(
    link: UcxLink, endpoint: FakeEndpoint
) -> None:
    link.leave("enough")
    assert goodbyes(endpoint) == ["the peer has left: enough"]
    link.advance(0.0)
    assert not endpoint.closed
    link.note_bye()
    link.advance(0.0)
    assert goodbyes(endpoint) == ["the peer has left: enough"]
    assert endpoint.closed


@pytest.mark.parametrize("dies", [True, False])
def test_data_that_does_not_end_keeps_no_end_forever(
    link: UcxLink, endpoint: FakeEndpoint, dies: bool
) -> None:
    link.send(1, np.zeros(8, np.uint8))
    link.leave("enough")
    endpoint.alive = not dies
    link.advance(0.0 if dies else FAR_LATER)
    assert endpoint.closed
