"""What each end of a socket must prove, and what does not count as a proof."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmserve.core.errors import NotAuthenticated
from llmserve.rpc.callers import CallerIdentity, CallerRole
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.wires import handshake
from llmserve.rpc.wires.handshake import (
    FRAME_BYTES,
    ClientHandshake,
    Purpose,
    ServerHandshake,
    prove,
    prove_stream,
    wrapped,
)
from tests.support.certificates import credentials_in, make_certificates

WORKER, MANAGER, ROUTER = CallerRole.WORKER, CallerRole.KVMANAGER, CallerRole.ROUTER
SECRET, OTHER = b"s" * 64, b"o" * 64
ENDS = (WORKER, MANAGER)


def known(role: CallerRole = WORKER, secret: bytes = SECRET) -> Credentials:
    return Credentials(CallerIdentity(role, "me"), secret)


def client(purpose: Purpose = Purpose.CHANNEL, **of: object) -> ClientHandshake:
    return ClientHandshake(known(**of), purpose)  # type: ignore[arg-type]


def server(**of: object) -> ServerHandshake:
    return ServerHandshake(known(**of), Purpose.CHANNEL)  # type: ignore[arg-type]


def test_both_ends_are_convinced() -> None:
    mine, theirs = client(), server(role=MANAGER)
    theirs.finish(mine.answer(theirs.challenge(mine.hello()), [MANAGER]), [WORKER])


def test_messages_have_one_size() -> None:
    mine, theirs = client(), server()
    hello = mine.hello()
    challenge = theirs.challenge(hello)
    assert {len(one) for one in (hello, challenge, mine.answer(challenge, ENDS))} == {FRAME_BYTES}


def test_a_server_without_the_secret_is_noticed() -> None:
    mine = client()
    with pytest.raises(NotAuthenticated, match="secret"):
        mine.answer(server(secret=OTHER).challenge(mine.hello()), ENDS)


def test_a_client_without_the_secret_is_noticed() -> None:
    """It does not care about the server's proof."""
    theirs, stranger = server(), client(secret=OTHER)
    challenge = theirs.challenge(stranger.hello())
    own = server(secret=OTHER).challenge(stranger.hello())
    forged = stranger.answer(own, ENDS)
    with pytest.raises(NotAuthenticated, match="secret"):
        theirs.finish(forged, ENDS)
    with pytest.raises(NotAuthenticated, match="secret"):
        theirs.finish(challenge[48:80].ljust(FRAME_BYTES, b"\0"), ENDS)  # the server's own proof, sent back


def test_a_role_that_may_not_is_refused() -> None:
    mine, theirs = client(role=ROUTER), server(role=ROUTER)
    challenge = theirs.challenge(mine.hello())
    with pytest.raises(NotAuthenticated, match="role"):
        mine.answer(challenge, ENDS)
    with pytest.raises(NotAuthenticated, match="role"):
        theirs.finish(mine.answer(challenge, [ROUTER]), ENDS)


def test_a_proof_for_another_purpose_is_none() -> None:
    theirs, mine = server(), client(Purpose.TRANSFER)
    with pytest.raises(NotAuthenticated, match="no hello"):
        theirs.challenge(mine.hello())
    relayed = ServerHandshake(known(), Purpose.TRANSFER).challenge(mine.hello())
    channel = client()
    with pytest.raises(NotAuthenticated):
        channel.answer(relayed, ENDS)


def test_what_was_recorded_cannot_be_used_again() -> None:
    mine, theirs = client(), server()
    hello = mine.hello()
    challenge = theirs.challenge(hello)
    proof = mine.answer(challenge, ENDS)
    theirs.finish(proof, ENDS)
    again = server()
    again.challenge(hello)
    with pytest.raises(NotAuthenticated, match="secret"):
        again.finish(proof, ENDS)
    with pytest.raises(NotAuthenticated, match="secret"):
        client().answer(challenge, ENDS)


@pytest.mark.parametrize("at", [0, 7, 8, 24, 40, 71])
def test_a_hello_that_was_changed_on_its_way_convinces_nobody(at: int) -> None:
    mine, theirs = client(), server()
    hello = bytearray(mine.hello())
    hello[at] ^= 1
    with pytest.raises(NotAuthenticated):
        mine.answer(theirs.challenge(bytes(hello)), ENDS)


@pytest.mark.parametrize("at", [0, 16, 47, 48, 79])
def test_nor_does_a_challenge(at: int) -> None:
    mine, theirs = client(), server()
    challenge = bytearray(theirs.challenge(mine.hello()))
    challenge[at] ^= 1
    with pytest.raises(NotAuthenticated):
        mine.answer(bytes(challenge), ENDS)


# -- over sockets


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def in_thread(action: Callable[[], None]) -> tuple[threading.Thread, list[Exception]]:
    errors: list[Exception] = []

    def run() -> None:
        try:
            action()
        except (OSError, NotAuthenticated) as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def met(
    pair: tuple[socket.socket, socket.socket], mine: Credentials, theirs: Credentials
) -> tuple[socket.socket, socket.socket]:
    """Returns the sockets of client and server after their handshake. Errors: those of either."""
    near, far = wrapped(pair[0], mine, server=False), wrapped(pair[1], theirs, server=True)
    thread, errors = in_thread(lambda: prove(far, theirs, Purpose.TRANSFER, ENDS, server=True))
    try:
        prove(near, mine, Purpose.TRANSFER, ENDS, server=False)
    except (OSError, NotAuthenticated) as error:
        errors.append(error)
        near.close()
    thread.join()
    if errors:
        near.close()
        far.close()
        raise errors[0]
    return near, far


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    ours, theirs = (tmp_path_factory.mktemp(name) for name in ("ours", "theirs"))
    for folder in (ours, theirs):
        make_certificates(folder)
    return ours, theirs


@pytest.fixture(params=["none", "secret", "certificates"])
def same(request: pytest.FixtureRequest, folders: tuple[Path, Path]) -> Credentials:
    kinds = {"none": NO_CREDENTIALS, "secret": known()}
    return kinds.get(request.param) or credentials_in(folders[0], WORKER)


def test_bytes_follow_the_handshake(same: Credentials, pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = met(pair, same, same)
    near.sendall(b"hello")
    assert far.recv(5) == b"hello"
    far.sendall(b"there")
    assert near.recv(5) == b"there"
    near.close()
    far.close()


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("secret", "other secret"),
        ("certificate", "other certificate"),
        ("router", "certificate"),
        ("certificate", "router"),
        ("secret", "certificate"),
        ("certificate", "secret"),
        ("router by secret", "secret"),
    ],
)
def test_ends_that_do_not_fit_do_not_meet(
    mine: str,
    theirs: str,
    folders: tuple[Path, Path],
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 0.2)
    kinds = {
        "secret": known(),
        "other secret": known(secret=OTHER),
        "router by secret": known(ROUTER),
        "certificate": credentials_in(folders[0], WORKER),
        "other certificate": credentials_in(folders[1], WORKER),
        "router": credentials_in(folders[0], ROUTER),
    }
    with pytest.raises((NotAuthenticated, OSError)):
        met(pair, kinds[mine], kinds[theirs])


@pytest.mark.parametrize("kind", ["secret", "certificate"])
def test_who_sends_a_byte_now_and_then_is_not_waited_for(
    kind: str,
    folders: tuple[Path, Path],
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 0.1)
    credentials = known() if kind == "secret" else credentials_in(folders[0], WORKER)
    far = wrapped(pair[1], credentials, server=True)
    ended = threading.Event()

    def drip() -> None:
        while not ended.wait(0.02):
            pair[0].send(b"\x16")

    thread, _ = in_thread(drip)
    began = time.monotonic()
    with pytest.raises(OSError):  # noqa: PT011 - a timeout, or TLS that makes no sense
        prove(far, credentials, Purpose.TRANSFER, ENDS, server=True)
    assert time.monotonic() - began < 20, "it would go on for ever"
    ended.set()
    thread.join()
    far.close()


async def streams(
    pair: tuple[socket.socket, socket.socket],
) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    return [await asyncio.open_connection(sock=end) for end in pair]


async def test_streams_meet_as_sockets_do(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = await streams(pair)
    await asyncio.gather(
        prove_stream(*near, known(), Purpose.CHANNEL, ENDS, server=False),
        prove_stream(*far, known(), Purpose.CHANNEL, ENDS, server=True),
    )
    near[1].write(b"hello")
    assert await far[0].readexactly(5) == b"hello"
    near[1].close()
    far[1].close()


async def test_a_stream_that_says_nothing_is_given_up(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 0.05)
    near, far = await streams(pair)
    with pytest.raises(TimeoutError):
        await prove_stream(*far, known(), Purpose.CHANNEL, ENDS, server=True)
    near[1].close()
    with pytest.raises((EOFError, TimeoutError)):
        await prove_stream(*far, known(), Purpose.CHANNEL, ENDS, server=True)
    far[1].close()
