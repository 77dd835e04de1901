"""TCP settings and RDMA devices."""

import pytest

from llmserve.doctor import network
from llmserve.doctor.finding import Status
from llmserve.doctor.host import Host
from tests.unit.doctor.conftest import MakeHost

_IPV4 = "proc/sys/net/ipv4"
_PORT = "sys/class/infiniband/mlx5_0/ports/1"


@pytest.mark.parametrize(
    ("current", "available", "status"),
    [
        ("cubic", "reno cubic", Status.OK),
        ("bbr", "reno cubic bbr", Status.NOTE),
        ("bbr", "reno bbr", Status.WARNING),
    ],
)
def test_congestion_control(make_host: MakeHost, current: str, available: str, status: Status) -> None:
    files = {
        f"{_IPV4}/tcp_congestion_control": current,
        f"{_IPV4}/tcp_available_congestion_control": available,
    }
    found = network.congestion_control(make_host(files))
    assert (found.status, found.value) == (status, current)


def test_congestion_control_that_cannot_be_read(make_host: MakeHost) -> None:
    assert network.congestion_control(make_host({})).value == "unknown"


@pytest.mark.parametrize(
    ("receive", "send", "status"),
    [(6 << 20, 4 << 20, Status.OK), (6 << 20, 1 << 20, Status.NOTE), (1 << 20, 4 << 20, Status.NOTE)],
)
def test_socket_buffers(make_host: MakeHost, receive: int, send: int, status: Status) -> None:
    files = {f"{_IPV4}/tcp_rmem": f"4096 131072 {receive}", f"{_IPV4}/tcp_wmem": f"4096\t16384\t{send}"}
    found = network.socket_buffers(make_host(files))
    assert found.status is status
    assert found.figures == {"receive_bytes": receive, "send_bytes": send}


def _rdma(make_host: MakeHost, state: str, *, usable: bool = True) -> Host:
    files = {
        f"{_PORT}/state": state,
        f"{_PORT}/rate": "100 Gb/sec (4X EDR)",
        f"{_PORT}/link_layer": "Ethernet",
    }
    return make_host(files | ({"dev/infiniband/uverbs0": ""} if usable else {}))


def test_rdma_that_works(make_host: MakeHost) -> None:
    host = _rdma(make_host, "4: ACTIVE\n")
    ports = network.rdma_ports(host)
    assert [port.is_active for port in ports] == [True]
    found = network.rdma(host, ports)
    assert (found.status, found.value) == (Status.OK, "mlx5_0/1 ACTIVE 100 Gb/sec (4X EDR) Ethernet")


def test_rdma_without_a_link(make_host: MakeHost) -> None:
    host = _rdma(make_host, "1: DOWN")
    assert network.rdma(host, network.rdma_ports(host)).status is Status.WARNING


def test_rdma_that_the_container_lacks(make_host: MakeHost) -> None:
    host = _rdma(make_host, "4: ACTIVE", usable=False)
    found = network.rdma(host, network.rdma_ports(host))
    assert found.status is Status.PROBLEM
    assert "--device=/dev/infiniband" in found.advice


def test_no_rdma(make_host: MakeHost) -> None:
    host = make_host({})
    assert network.rdma(host, network.rdma_ports(host)).value == "none"
