"""How an end of a ucx connection leaves, without UCX."""

from typing import cast

import numpy as np
import pytest

from llmserve.transfer.base import Int64Array, Region, Spans
from llmserve.transfer.ucx import wire
from llmserve.transfer.ucx.library import Bytes, UcxEndpoint
from llmserve.transfer.ucx.link import RegionViews, UcxLink

FAR_LATER = 1e12


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

    def send(self, buffer: Bytes, tag: int) -> FakeRequest:
        if tag == wire.CONTROL_TAG:
            self.said.append(wire.unpack(buffer.tobytes()))
            return FakeRequest(over=True)
        self.sizes.append([len(buffer)])
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
    memory = np.zeros(64, np.uint8)
    return RegionViews([Region(memory.ctypes.data, 64)])


def spans(*offsets: int) -> Spans:
    """Returns pieces of 8 bytes."""
    column = np.array(offsets, np.int64)
    return Spans(0 * column, column, 0 * column + 8)


@pytest.mark.parametrize(
    ("offsets", "sizes"),
    [((0, 16, 32), [8, 8, 8]), ((40, 0, 8, 24), [8, 16, 8]), ((8, 16), [16]), ((8,), [8])],
)
def test_all_pieces_of_a_part_are_one_message_and_neighbours_one_piece(
    link: UcxLink, endpoint: FakeEndpoint, views: RegionViews, offsets: tuple[int, ...], sizes: list[int]
) -> None:
    views.send(link, 1, spans(*offsets))
    assert endpoint.sizes == [sizes]


@pytest.mark.parametrize("offsets", [(0,), (0, 16)])
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
