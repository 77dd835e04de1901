"""How often a process looks at a connection that another one is to take."""

import asyncio
import os
import socket
import time

from llmserve.apiserver.http.listener.shared_accept import SharedAccept
from llmserve.apiserver.http.listener.shared_port import ConnectionTable, PortShare, bind, make_table


async def test_who_waits_for_another_looks_less_and_less_often_and_takes_the_connection_at_last() -> None:
    """A look each millisecond would be 50. The other process has fewer connections, and takes none."""
    looks: list[float] = []
    taken: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()

    def count() -> int:
        looks.append(time.monotonic())
        return 5

    table_fd, bound = make_table(2), bind("127.0.0.1:0")
    address = bound.getsockname()
    other = ConnectionTable(os.dup(table_fd), 1)
    accept = SharedAccept(PortShare(bound.detach(), table_fd, 0), taken.set_result, count)
    accept.start()
    try:
        other.publish(0, time.monotonic())
        looks.clear()
        with socket.create_connection(address), await asyncio.wait_for(taken, 2):
            assert 3 <= len(looks) <= 14
    finally:
        accept.close()
        other.close()
