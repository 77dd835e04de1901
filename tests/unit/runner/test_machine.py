"""Ports, GPUs and cores of this machine."""

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from llmserve.apiserver.http.listener.shared_port import ConnectionTable
from llmserve.config.plan import ProcessRole, ProcessSpec
from llmserve.core.errors import StartFailed
from llmserve.runner.machine import (
    HeldPorts,
    HttpPort,
    available_cores,
    available_gpus,
    check_free,
    holders_of,
)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia10", "nvidia0", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def held() -> Iterator[HeldPorts]:
    with HeldPorts() as made:
        yield made


def test_a_picked_port_is_free_and_outgoing_connections_do_not_take_it(held: HeldPorts) -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {held.pick() for _ in range(20)}
    assert all(1024 <= port < first for port in ports)
    assert len(ports) == 20
    check_free([f"127.0.0.1:{port}" for port in ports])


def test_ports_in_use_are_passed_over(monkeypatch: pytest.MonkeyPatch, taken: int, held: HeldPorts) -> None:
    with HeldPorts() as others:
        free = others.pick()
    offered = iter([taken, taken, free])
    monkeypatch.setattr(random, "randrange", lambda *bounds: next(offered))
    assert held.pick() == free


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_held_port_is_found_by_nobody_and_servers_come_and_go_there(
    monkeypatch: pytest.MonkeyPatch, held: HeldPorts, host: str
) -> None:
    port = held.pick()
    monkeypatch.setattr(random, "randrange", lambda *bounds: port)
    for _ in range(2):
        with pytest.raises(StartFailed, match="no free port"), HeldPorts() as others:
            others.pick()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with socket.create_server((host, port)):
            socket.create_connection(("127.0.0.1", port)).close()
            with pytest.raises(StartFailed, match="no free port"), HeldPorts() as others:
                others.pick()
    held.close()
    with HeldPorts() as others:
        assert others.pick() == port


async def test_grpc_listens_on_a_held_port(held: HeldPorts) -> None:
    port = held.pick()
    for _ in range(2):
        server = grpc.aio.server()
        assert server.add_insecure_port(f"127.0.0.1:{port}") == port
        await server.start()
        await server.stop(None)


def test_a_port_in_use_is_said_with_its_holder(taken: int, held: HeldPorts) -> None:
    comm = Path("/proc/self/comm").read_text().strip()
    assert (os.getpid(), comm) in set(holders_of(taken))
    with pytest.raises(StartFailed) as caught:
        check_free([f"127.0.0.1:{held.pick()}", f"127.0.0.1:{taken}"])
    assert caught.value.message == f"127.0.0.1:{taken}: the port is in use by {comm} (pid {os.getpid()})"


def test_a_port_in_use_on_loopback_is_in_use_everywhere(taken: int) -> None:
    with pytest.raises(StartFailed, match=rf"0\.0\.0\.0:{taken}: the port is in use"):
        check_free([f"0.0.0.0:{taken}"])


def test_a_port_whose_connections_linger_is_free(held: HeldPorts) -> None:
    """As after a restart: the closed connections of the last server are in TIME_WAIT."""
    port = held.pick()
    with socket.create_server(("127.0.0.1", port)) as server:
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = server.accept()
        served.close()
        client.close()
    check_free([f"127.0.0.1:{port}"])


def test_an_address_that_is_not_of_this_machine_is_said() -> None:
    with pytest.raises(StartFailed, match=r"192\.0\.2\.1:80: cannot be listened on: Cannot assign"):
        check_free(["192.0.2.1:80"])


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_ipv6_addresses_are_in_brackets(held: HeldPorts) -> None:
    port = held.pick()
    message = rf"\[::1\]:{port}: the port is in use by .*pid {os.getpid()}"
    with (
        socket.create_server(("::1", port), family=socket.AF_INET6),
        pytest.raises(StartFailed, match=message),
    ):
        check_free([f"[::1]:{port}"])
    check_free([f"[::1]:{port}"])


def test_gpus_are_those_of_the_device_folder(devices: Path) -> None:
    assert available_gpus(devices) == (0, 2, 10)


@pytest.mark.parametrize(
    ("visible", "gpus"), [("10,0", (10, 0)), ("0, 2", (0, 2)), ("7", ()), ("", ()), ("-1", ())]
)
def test_gpus_may_be_narrowed_down(
    devices: Path, monkeypatch: pytest.MonkeyPatch, visible: str, gpus: tuple[int, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert available_gpus(devices) == gpus


def test_cores_are_those_this_process_may_use() -> None:
    assert set(available_cores()) == os.sched_getaffinity(0)


def apiservers(port: int, *, shared: bool = True) -> list[ProcessSpec]:
    http, direct = f"127.0.0.1:{port}", "127.0.0.1:1" if shared else None
    role = ProcessRole.APISERVER
    return [ProcessSpec(role, f"apiserver-{index}", "x", http=http, direct=direct) for index in range(2)]


@pytest.fixture
def port(held: HeldPorts) -> int:
    return held.pick()


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
        socket.create_connection(("127.0.0.1", port), timeout=30)
    with socket.socket(fileno=socket.dup(share.socket_fd)) as inherited:
        inherited.listen()
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
        held.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=30)


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
    other.publish(3, 100.0)
    assert one.is_least(3, 100.1)
    assert not one.is_least(4, 100.1)
    assert one.is_least(4, 101.0), "the other hangs"
    other.publish(3, 101.0)
    other.close()
    other.close()
    assert one.is_least(4, 101.0), "the other has left"
    one.close()
    held.close()
