"""The port that several apiservers share, as the supervisor holds it."""

import socket

import pytest

from llmserve.config.plan import ProcessRole, ProcessSpec
from llmserve.core.errors import StartFailed
from llmserve.core.shared_port import ConnectionTable
from llmserve.runner.http_port import HttpPort


def apiservers(port: int, *, shared: bool = True) -> list[ProcessSpec]:
    http, direct = f"127.0.0.1:{port}", "127.0.0.1:1" if shared else None
    role = ProcessRole.APISERVER
    return [ProcessSpec(role, f"apiserver-{index}", "x", http=http, direct=direct) for index in range(2)]


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_each_process_has_its_place_at_the_same_socket(port: int) -> None:
    specs = apiservers(port)
    held = HttpPort(specs)
    held.open()
    shares = [held.share_of(spec) for spec in specs]
    assert [share.index for share in shares if share] == [0, 1]
    assert len({(share.socket_fd, share.table_fd) for share in shares if share}) == 1
    held.close()
    held.close()


def test_nobody_can_connect_before_a_process_listens_and_after_the_end(port: int) -> None:
    specs = apiservers(port)
    held = HttpPort(specs)
    held.open()
    share = held.share_of(specs[0])
    assert share is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    with socket.socket(fileno=socket.dup(share.socket_fd)) as inherited:
        inherited.listen()
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        held.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_port_of_its_own_is_not_held(port: int) -> None:
    specs = apiservers(port, shared=False)
    held = HttpPort(specs)
    held.open()
    assert held.share_of(specs[0]) is None
    with socket.create_server(("127.0.0.1", port)):
        held.close()


def test_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        held = HttpPort(apiservers(taken.getsockname()[1]))
        with pytest.raises(StartFailed, match=r"cannot listen on 127\.0\.0\.1"):
            held.open()
        held.close()


def test_the_one_with_the_fewest_connections_takes_the_next(port: int) -> None:
    specs = apiservers(port)
    held = HttpPort(specs)
    held.open()
    share = held.share_of(specs[0])
    assert share is not None
    one, other = (ConnectionTable(socket.dup(share.table_fd), index) for index in range(2))
    assert one.is_least(5, 100.0), "the other has told nothing yet"
    other.tell(3, 100.0)
    assert one.is_least(3, 100.1)
    assert not one.is_least(4, 100.1)
    assert one.is_least(4, 101.0), "the other hangs"
    other.tell(3, 101.0)
    other.close()
    other.close()
    assert one.is_least(4, 101.0), "the other has left"
    one.close()
    held.close()
