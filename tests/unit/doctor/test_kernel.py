"""Each status of each limit, caused."""

import os
import resource
from pathlib import Path

import pytest

from llmserve.doctor import Status, kernel
from llmserve.doctor.kernel import disk_cache, disk_room
from llmserve.runner.host import GIB, MIB, Host, rdma_ports
from tests.unit.conftest import MakeHost

_NO_LIMIT = resource.RLIM_INFINITY
_IPC_LOCK, _SYS_PTRACE = 1 << 14, 1 << 19


@pytest.mark.parametrize(
    ("size", "free", "status"),
    [
        (0, 0, Status.PROBLEM),
        (64 * MIB, 64 * MIB, Status.PROBLEM),
        (2 * GIB, 100 * MIB, Status.WARNING),
        (2 * GIB, 2 * GIB, Status.OK),
    ],
)
def test_shared_memory(size: int, free: int, status: Status) -> None:
    found = kernel.shared_memory(size, free)
    assert found.status is status
    assert (status is Status.OK) == ("--shm-size" not in found.advice)
    assert found.figures == {"size_bytes": size, "free_bytes": free}


@pytest.mark.parametrize(
    ("soft", "hard", "status"),
    [
        (256, 4096, Status.WARNING),
        (1024, 1 << 20, Status.NOTE),
        (1024, _NO_LIMIT, Status.NOTE),
        (1 << 16, 1 << 16, Status.OK),
        (_NO_LIMIT, _NO_LIMIT, Status.OK),
    ],
)
def test_open_files(soft: int, hard: int, status: Status) -> None:
    assert kernel.open_files(soft, hard).status is status


def test_a_low_hard_limit_is_said() -> None:
    assert "hard limit of 2048 forbids" in kernel.open_files(1024, 2048).advice
    assert "forbids" not in kernel.open_files(1024, 1 << 20).advice


@pytest.mark.parametrize(
    ("soft", "capabilities", "has_rdma", "status"),
    [
        (_NO_LIMIT, 0, True, Status.OK),
        (8 * MIB, _IPC_LOCK, True, Status.OK),
        (8 * MIB, 0, False, Status.OK),
        (8 * MIB, 0, True, Status.PROBLEM),
        (8 * MIB, _SYS_PTRACE, True, Status.PROBLEM),
    ],
)
def test_locked_memory(soft: int, capabilities: int, has_rdma: bool, status: Status) -> None:
    assert kernel.locked_memory(soft, capabilities, has_rdma).status is status


@pytest.mark.parametrize(
    ("scope", "capabilities", "status"),
    [
        ("", 0, Status.OK),
        ("0", 0, Status.OK),
        ("1", 0, Status.OK),
        ("2", 0, Status.NOTE),
        ("2", _SYS_PTRACE, Status.OK),
        ("3", _SYS_PTRACE, Status.NOTE),
    ],
)
def test_process_access(make_host: MakeHost, scope: str, capabilities: int, status: Status) -> None:
    host = make_host({"proc/sys/kernel/yama/ptrace_scope": scope} if scope else {})
    found = kernel.process_access(host, capabilities)
    assert found.status is status
    assert ("after a restart" in found.advice) == (scope == "3")


@pytest.mark.parametrize(
    ("free", "status"), [(200 * MIB, Status.PROBLEM), (5 * GIB, Status.WARNING), (50 * GIB, Status.OK)]
)
def test_room(free: int, status: Status) -> None:
    found = disk_room("model cache", Path("/models"), free, "CACHE")
    assert found.status is status
    assert found.figures == {"free_bytes": free}


def test_a_folder_that_is_still_to_be_made(tmp_path: Path) -> None:
    found = disk_cache("model cache", tmp_path / "a" / "b", "CACHE")
    assert found.value.endswith(f"free at {tmp_path}/a/b")


def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    found = disk_cache("model cache", tmp_path, "CACHE")
    assert found.status is Status.PROBLEM
    assert "set CACHE" in found.advice


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
    found = kernel.congestion_control(make_host(files))
    assert (found.status, found.value) == (status, current)


def test_congestion_control_that_cannot_be_read(make_host: MakeHost) -> None:
    assert kernel.congestion_control(make_host({})).value == "unknown"


@pytest.mark.parametrize(
    ("receive", "send", "status"),
    [(6 << 20, 4 << 20, Status.OK), (6 << 20, 1 << 20, Status.NOTE), (1 << 20, 4 << 20, Status.NOTE)],
)
def test_socket_buffers(make_host: MakeHost, receive: int, send: int, status: Status) -> None:
    files = {f"{_IPV4}/tcp_rmem": f"4096 131072 {receive}", f"{_IPV4}/tcp_wmem": f"4096\t16384\t{send}"}
    found = kernel.socket_buffers(make_host(files))
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
    ports = rdma_ports(host)
    assert [port.is_active for port in ports] == [True]
    found = kernel.rdma(host, ports)
    assert (found.status, found.value) == (Status.OK, "mlx5_0/1 ACTIVE 100 Gb/sec (4X EDR) Ethernet")


def test_rdma_without_a_link(make_host: MakeHost) -> None:
    host = _rdma(make_host, "1: DOWN")
    assert kernel.rdma(host, rdma_ports(host)).status is Status.WARNING


def test_rdma_that_the_container_lacks(make_host: MakeHost) -> None:
    host = _rdma(make_host, "4: ACTIVE", usable=False)
    found = kernel.rdma(host, rdma_ports(host))
    assert found.status is Status.PROBLEM
    assert "--device=/dev/infiniband" in found.advice


def test_no_rdma(make_host: MakeHost) -> None:
    host = make_host({})
    assert kernel.rdma(host, rdma_ports(host)).value == "none"
