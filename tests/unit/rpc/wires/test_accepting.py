"""Which connection has to go when too many have proved nothing."""

import asyncio
import gc
import socket
import warnings

import pytest

from llmserve.rpc.wires.accepting import UnprovenConnections, accept_all


@pytest.mark.parametrize("turns", range(5))
async def test_a_connection_that_comes_at_the_end_is_closed_or_taken(turns: int) -> None:
    """turns: of the loop, between its coming and the end."""
    taken: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    accepting = asyncio.create_task(accept_all(listener, taken.append))
    await asyncio.sleep(0.01)
    with warnings.catch_warnings(record=True) as lost, socket.create_connection(listener.getsockname()):
        warnings.simplefilter("always")
        for _ in range(turns):
            await asyncio.sleep(0)
        accepting.cancel()
        await asyncio.wait([accepting])
        gc.collect()
    assert not lost
    for connection in taken:
        assert not connection.getblocking()
        connection.close()


async def test_a_connection_that_could_not_be_taken_is_closed() -> None:
    def defect(connection: socket.socket) -> None:
        raise KeyError(connection.fileno())

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    with socket.create_connection(listener.getsockname()) as client:
        with pytest.raises(KeyError):
            await accept_all(listener, defect)
        client.settimeout(5.0)
        assert client.recv(1) == b""


def test_there_is_room_for_some() -> None:
    unproven = UnprovenConnections[str](2)
    assert unproven.add("a", "10.0.0.1") is None
    assert unproven.add("b", "10.0.0.1") is None
    assert len(unproven) == 2


def test_the_oldest_goes_and_the_newest_is_let_in() -> None:
    unproven = UnprovenConnections[str](2)
    dropped = [unproven.add(name, "10.0.0.1") for name in "abcd"]
    assert dropped == [None, None, "a", "b"]
    assert list(unproven) == ["c", "d"]


def test_an_address_that_opens_many_pushes_out_its_own() -> None:
    unproven = UnprovenConnections[str](3)
    unproven.add("peer", "10.0.0.1")
    dropped = [unproven.add(name, "10.0.0.9") for name in "abcd"]
    assert dropped == [None, None, "a", "b"]
    assert "peer" in list(unproven)


def test_what_has_proved_itself_does_not_count() -> None:
    unproven = UnprovenConnections[str](1)
    unproven.add("a", "10.0.0.1")
    unproven.remove("a")
    unproven.remove("a")
    assert unproven.add("b", "10.0.0.1") is None
