import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from llmserve.core.errors import InvalidRequest, TransferError, TransportUnavailable
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import NO_CREDENTIALS
from llmserve.transfer.base import HOST, Memory, Region, Transport
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.faulty import FaultyTransport
from llmserve.transfer.select import make_transports, makers, with_faults
from tests.support.certificates import credentials_in, make_certificates
from tests.support.transports import need_transport


class Fake:
    def __init__(self, name: str, *memories: Memory) -> None:
        self.name = name
        self.memories = memories or (HOST,)
        self.closed = False

    def reaches(self, memory: Memory) -> bool:
        return memory in self.memories

    def close(self) -> None:
        self.closed = True


def working(name: str, made: list[Fake], *memories: Memory) -> Callable[[], Transport]:
    def make() -> Transport:
        made.append(Fake(name, *memories))
        return cast("Transport", made[-1])

    return make


@pytest.mark.parametrize(
    ("host", "before", "after"),
    [
        ("127.0.0.1", None, "lo"),
        ("localhost", None, "lo"),
        ("127.0.0.1", "mlx5_0:1", "mlx5_0:1"),
        ("10.0.0.7", None, None),
    ],
)
def test_ucx_listens_on_loopback_where_all_peers_are_there(
    host: str, before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCX_NET_DEVICES", before or "")  # so that it is as before after the test
    if before is None:
        monkeypatch.delenv("UCX_NET_DEVICES")
    made: list[Fake] = []
    make_transports([], host, {name: working(name, made) for name in ("shm", "tcp")})
    assert os.environ.get("UCX_NET_DEVICES") == after


@pytest.mark.parametrize(
    ("host", "role", "warns"),
    [
        ("10.0.0.7", CallerRole.WORKER, True),
        ("127.0.0.1", CallerRole.WORKER, False),
        ("10.0.0.7", None, False),
    ],
)
def test_with_certificates_it_is_said_what_is_not_encrypted_between_hosts(
    host: str, role: CallerRole | None, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Fake] = []
    known = {name: working(name, made) for name in ("ucx", "shm", "tcp")}
    if role is not None:
        make_certificates(tmp_path)
    credentials = credentials_in(tmp_path, role) if role else NO_CREDENTIALS
    make_transports(["ucx"], host, known, credentials=credentials)
    assert ("KV between hosts is not encrypted by ucx" in caplog.text) is warns


def broken(reason: str) -> Callable[[], Transport]:
    def make() -> Transport:
        raise TransportUnavailable(reason)

    return make


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ([], ["shm", "tcp"]),
        (["a"], ["a", "shm", "tcp"]),
        (["tcp", "b", "a", "b"], ["b", "a", "shm", "tcp"]),
    ],
)
def test_the_order_is_that_of_the_manifest_and_tcp_is_last(order: list[str], names: list[str]) -> None:
    known = {name: working(name, []) for name in ("a", "b", "shm", "tcp")}
    transports, unusable = make_transports(order, "127.0.0.1", known)
    assert [transport.name for transport in transports] == names
    assert unusable == {}


def test_what_cannot_be_used_has_a_reason() -> None:
    known = {"a": broken("no such card"), "shm": broken("forbidden"), "tcp": working("tcp", [])}
    transports, unusable = make_transports(["a", "nccl"], "127.0.0.1", known)
    assert [transport.name for transport in transports] == ["tcp"]
    assert unusable == {
        "a": "no such card",
        "nccl": "not available in this version",
        "shm": "forbidden",
    }


GPU = Memory(1)


def test_what_does_not_reach_the_memory_is_closed_and_has_a_reason() -> None:
    made: list[Fake] = []
    known = {"shm": working("shm", made), "tcp": working("tcp", made, HOST, GPU)}
    staging = Staging(FakeDevice(1))
    (tcp,), unusable = make_transports([], "127.0.0.1", known, staging)
    assert tcp.name == "tcp"
    assert unusable == {"shm": "shm does not reach memory of GPU 1"}
    assert [fake.closed for fake in made] == [True, False]


def test_a_device_that_not_even_tcp_reaches_is_refused() -> None:
    known = {"shm": working("shm", []), "tcp": working("tcp", [])}
    with pytest.raises(TransportUnavailable, match="not even tcp can be used: tcp does not reach memory of"):
        make_transports([], "127.0.0.1", known, Staging(FakeDevice(1)))


@pytest.mark.parametrize(
    ("kind", "on_host", "on_gpu"),
    [
        ("nixl", {HOST}, {HOST, GPU}),
        ("ucx", {HOST}, {HOST, GPU}),
        ("nccl", {HOST}, set()),  # there is no GPU
        ("shm", {HOST}, {HOST}),
        ("tcp", {HOST}, {HOST, GPU}),
    ],
)
def test_each_transport_says_what_memory_it_reaches(
    kind: str, on_host: set[Memory], on_gpu: set[Memory]
) -> None:
    """Of the host's, this GPU's and another one's, in a process without a GPU and in one that has one."""
    assert _reached(kind, None) == on_host
    assert _reached(kind, Staging(FakeDevice(1))) == on_gpu


def _reached(kind: str, staging: Staging | None) -> set[Memory]:
    need_transport(kind)
    try:
        transport = makers("127.0.0.1", staging)[kind]()
    except TransportUnavailable:
        if kind != "nccl":
            raise
        return set()
    try:
        found = {memory for memory in (HOST, GPU, Memory(0)) if transport.reaches(memory)}
        for memory in {HOST, GPU, Memory(0)} - found:
            with pytest.raises(TransferError, match=f"{transport.name}: does not reach {memory}"):
                transport.register([Region(4096, 4096, memory)])
    finally:
        transport.close()
    return found


def test_faults_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSERVE_FAULTS", "shm: stall=1/2; fail_poll=1/16,seed=7")
    (shm, tcp), _ = make_transports([], "127.0.0.1")
    try:
        assert isinstance(shm, FaultyTransport)
        assert isinstance(tcp, FaultyTransport)
        assert [rule.fault for rule in shm.faults.plan.rules] == ["stall"]
        assert [rule.fault for rule in tcp.faults.plan.rules] == ["fail_poll"]
    finally:
        shm.close()
        tcp.close()


def test_faults_for_others_leave_a_transport_alone() -> None:
    fake = working("tcp", [])()
    assert with_faults(fake, "") is fake
    assert with_faults(fake, "nixl ucx: stall=1/2") is fake
    with pytest.raises(InvalidRequest, match="no fault is called"):
        with_faults(fake, "tcp: explode=1/2")


def test_nothing_is_left_open_when_tcp_fails() -> None:
    made: list[Fake] = []
    with pytest.raises(TransportUnavailable, match="no ports"):
        make_transports(["a"], "127.0.0.1", {"a": working("a", made), "tcp": broken("no ports")})
    assert [fake.closed for fake in made] == [True]


def test_a_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(TransportUnavailable, match=r"192\.0\.2\.1"):
        makers("192.0.2.1")["tcp"]()
