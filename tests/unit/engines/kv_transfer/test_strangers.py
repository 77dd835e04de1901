"""Side channels and tcp among strangers: with the secret of a cluster, and with certificates."""

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmserve.core.errors import DeadlineExceeded, TransferError
from llmserve.core.kv_params import PullParams
from llmserve.engines.kv_transfer import query_status, release_lease, set_peers
from llmserve.rpc.callers import CallerIdentity, CallerRole
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.wires import handshake
from llmserve.rpc.wires.accepting import MAX_UNPROVEN
from tests.support.certificates import credentials_in, make_certificates

Make = Callable[..., Any]
Wait = Callable[[Callable[[], bool]], None]


def secret(text: bytes, role: CallerRole = CallerRole.WORKER) -> Credentials:
    return Credentials(CallerIdentity(role, "me"), text * 64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    ours, theirs = (tmp_path_factory.mktemp(name) for name in ("ours", "theirs"))
    for folder in (ours, theirs):
        make_certificates(folder)
    return ours, theirs


@pytest.fixture(params=["secret", "certificates"])
def wires(
    request: pytest.FixtureRequest, folders: tuple[Path, Path]
) -> tuple[Credentials, list[Credentials]]:
    """The credentials of a worker, and those of others: of other clusters, and of another role here."""
    ours, theirs = folders
    known = {"secret": secret(b"s"), "certificates": credentials_in(ours, CallerRole.WORKER)}
    wrong = {
        "secret": [secret(b"o"), secret(b"s", CallerRole.APISERVER)],
        "certificates": [
            credentials_in(theirs, CallerRole.WORKER),
            credentials_in(ours, CallerRole.APISERVER),
            secret(b"s"),
        ],
    }
    return known[request.param], [NO_CREDENTIALS, *wrong[request.param]]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 0.5)


def test_workers_of_a_cluster_hand_over(make_side: Make, wires: tuple[Credentials, Any]) -> None:
    owner, reader = (make_side(seed, credentials=wires[0]) for seed in (1, 2))
    reader.pull(owner.grant("p1", [4, 5, 9]), [1, 2, 0])
    result = reader.result()
    assert (result.ok, result.transport, result.reason) == (True, "tcp", "")
    assert reader.kv.holds([1, 2, 0], owner.kv, [4, 5, 9])
    assert owner.node.server.take_ended() == {"p1"}


async def test_strangers_change_nothing(
    make_side: Make, wires: tuple[Credentials, list[Credentials]]
) -> None:
    """Each request of the side channel that needs no KV of one's own."""
    owner = make_side(1, credentials=wires[0])
    params: PullParams = owner.grant("p1", [4])
    for stranger in wires[1]:
        for ask in (query_status(owner.node.endpoint, 2.0, stranger), release_lease(params, 2.0, stranger)):
            with pytest.raises((TransferError, DeadlineExceeded)):
                await ask
        with pytest.raises((TransferError, DeadlineExceeded)):
            await set_peers(owner.node.endpoint, [], 2.0, stranger)
    status = await query_status(owner.node.endpoint, 5.0, wires[0])
    assert (status.open_leases, status.released_leases) == (1, 0)


def test_a_stranger_gets_no_blocks(make_side: Make, wires: tuple[Credentials, list[Credentials]]) -> None:
    """Though it has the ticket of another's request."""
    owner = make_side(1, credentials=wires[0])
    ticket = owner.grant("p1", [4])
    for number, stranger in enumerate(wires[1]):
        reader = make_side(2 + number, credentials=stranger)
        reader.pull(ticket, [1])
        assert not reader.result().ok
        assert not reader.kv.holds([1], owner.kv, [4])
    assert owner.node.server.leased_count == 1


async def test_what_is_sent_before_the_proof_is_bounded(
    make_side: Make, wires: tuple[Credentials, Any]
) -> None:
    """A length of 4 MiB, as the first bytes of a message, makes nothing wait for so much."""
    owner = make_side(1, credentials=wires[0])
    host, _, port = owner.node.endpoint.rpartition(":")

    def knock() -> bytes:
        with socket.create_connection((host, int(port)), timeout=30) as sock:
            sock.sendall(b"\x00\x40\x00\x00" + bytes(508))
            try:
                return sock.recv(1)
            except ConnectionResetError:
                return b""

    assert await asyncio.to_thread(knock) in (b"", b"\x15"), "closed, perhaps after an alert of TLS"
    assert (await query_status(owner.node.endpoint, 5.0, wires[0])).open_leases == 0


@pytest.mark.parametrize("port_of", ["channel", "tcp"])
async def test_many_silent_connections_keep_nobody_out(
    make_side: Make, wires: tuple[Credentials, Any], port_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a server lets in at a time, which would all be open for longer than this test takes."""
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 60.0)
    owner, reader = (make_side(seed, credentials=wires[0]) for seed in (1, 2))
    port = int(owner.node.endpoint.rpartition(":")[2])
    if port_of == "tcp":
        port = json.loads(owner.node.server._engine.descriptions["tcp"])["port"]
    silent = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(2 * MAX_UNPROVEN)]
    try:
        reader.pull(owner.grant("p1", [4]), [1])
        result = await asyncio.to_thread(reader.result)
        assert (result.ok, result.transport) == (True, "tcp")
        let_go = await asyncio.to_thread(lambda: sum(map(is_over, silent)))
        assert let_go >= MAX_UNPROVEN, "the oldest ones, and no newcomer"
    finally:
        for one in silent:
            one.close()


def is_over(sock: socket.socket) -> bool:
    sock.settimeout(0.01)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
