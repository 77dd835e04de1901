"""The listening socket of the HTTP port."""

import asyncio
import os
import socket
from collections.abc import Callable

import pytest

from llmserve.apiserver.http.listener.shared_port import bind


def _as_bound(bound: socket.socket) -> socket.socket:
    return bound


def _as_inherited(bound: socket.socket) -> socket.socket:
    """As a process sees it that got the descriptor of the socket from its parent."""
    return socket.socket(fileno=os.dup(bound.fileno()))


@pytest.mark.parametrize("seen", [_as_bound, _as_inherited])
async def test_small_writes_of_an_accepted_connection_are_sent_at_once(
    seen: Callable[[socket.socket], socket.socket],
) -> None:
    """Nagle's algorithm would hold back the body behind the head, and each token of a stream, for 40 ms."""
    bound = bind("127.0.0.1:0")
    bound.listen()
    with bound, seen(bound) as listening, socket.create_connection(bound.getsockname()):
        connection, _ = listening.accept()
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, connection)
        try:
            accepted = transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        finally:
            transport.close()
