"""How an end of a ucx connection leaves, without UCX."""

from typing import cast

import numpy as np
import pytest

from llmserve.transfer.ucx import wire
from llmserve.transfer.ucx.library import Bytes, UcxEndpoint
from llmserve.transfer.ucx.link import PackBuffers, UcxLink

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

    def send(self, buffer: Bytes, tag: int) -> FakeRequest:
        if tag == wire.CONTROL_TAG:
            self.said.append(wire.unpack(buffer.tobytes()))
            return FakeRequest(over=True)
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
    return UcxLink(1, cast("UcxEndpoint", endpoint), PackBuffers())


@pytest.mark.parametrize("send", ["send", "send_messages"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_an_end_with_data_in_flight_says_bye_and_closes_after_it(
    link: UcxLink, endpoint: FakeEndpoint, send: str, pieces: int
) -> None:
    """UCX crashes when an end closes while its socket is full, and so does the peer."""
    getattr(link, send)(1, [np.zeros(8, np.uint8)] * pieces)
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
    link.send(1, [np.zeros(8, np.uint8)])
    link.leave("enough")
    endpoint.alive = not dies
    link.advance(0.0 if dies else FAR_LATER)
    assert endpoint.closed
