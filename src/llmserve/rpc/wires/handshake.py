"""How two processes prove to each other, on a socket of ours, that they are of one cluster.

With certificates a socket becomes one of TLS. Otherwise both ends prove that they know the cluster's secret,
in three messages of a fixed size, and what follows is neither encrypted nor signed:

client -> server  hello: what the connection is for, the client's role, a nonce
       <-         challenge: the server's role, a nonce, its proof
       ->         the client's proof

A proof is an HMAC over both nonces, both roles, the purpose, and which end makes it. So none can be used
again, in another connection, for another purpose, or by the other end. Without credentials there is no
handshake.
"""

import asyncio
import hashlib
import hmac
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from llmserve.core.errors import NotAuthenticated
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials

HANDSHAKE_SECONDS = 5.0
FRAME_BYTES = 128  # a multiple of 64, by which tcp's messages are aligned
_MAGIC = b"LSHELLO\x01"
_NONCE_BYTES = 32
_HELLO = struct.Struct(f"<8s16s16s{_NONCE_BYTES}s56x")
_CHALLENGE = struct.Struct(f"<16s{_NONCE_BYTES}s32s48x")
_PROOF = struct.Struct("<32s96x")


class Purpose(StrEnum):
    CHANNEL = "channel"  # of engines
    TRANSFER = "transfer"  # of bytes


@dataclass(frozen=True, slots=True)
class _Exchange:
    """What both ends have in common when a proof is made. Strings are padded with zeros on the wire."""

    secret: bytes
    purpose: bytes
    client_role: bytes
    client_nonce: bytes
    server_role: bytes
    server_nonce: bytes

    def proof(self, end: bytes) -> bytes:
        fields = (self.purpose, self.client_role, self.client_nonce, self.server_role, self.server_nonce)
        return hmac.new(self.secret, end + b"".join(fields), hashlib.sha256).digest()


_CLIENT, _SERVER = b"llmserve client ", b"llmserve server "


class ClientHandshake:
    """Life: hello -> answer."""

    def __init__(self, credentials: Credentials, purpose: Purpose) -> None:
        self._credentials, self._purpose = credentials, _padded(purpose)
        self._role, self._nonce = _padded(credentials.own.role), secrets.token_bytes(_NONCE_BYTES)

    def hello(self) -> bytes:
        return _HELLO.pack(_MAGIC, self._purpose, self._role, self._nonce)

    def answer(self, frame: bytes, servers: Collection[CallerRole]) -> bytes:
        """Checks the server's challenge, and returns the proof for it. servers: roles that it may have.
        Errors: NotAuthenticated."""
        role, nonce, proof = _CHALLENGE.unpack(frame)
        exchange = _Exchange(_secret(self._credentials), self._purpose, self._role, self._nonce, role, nonce)
        _check(proof, exchange.proof(_SERVER), role, servers)
        return _PROOF.pack(exchange.proof(_CLIENT))


class ServerHandshake:
    """Life: challenge -> finish."""

    def __init__(self, credentials: Credentials, purpose: Purpose) -> None:
        self._credentials, self._purpose = credentials, _padded(purpose)
        self._exchange: _Exchange | None = None

    def challenge(self, frame: bytes) -> bytes:
        """Reads a hello. Errors: NotAuthenticated for what is none."""
        magic, purpose, role, nonce = _HELLO.unpack(frame)
        if magic != _MAGIC or purpose != self._purpose:
            raise NotAuthenticated("it says no hello of this cluster")
        own, fresh = _padded(self._credentials.own.role), secrets.token_bytes(_NONCE_BYTES)
        self._exchange = _Exchange(_secret(self._credentials), purpose, role, nonce, own, fresh)
        return _CHALLENGE.pack(own, fresh, self._exchange.proof(_SERVER))

    def finish(self, frame: bytes, clients: Collection[CallerRole]) -> None:
        """clients: roles that the client may have. Errors: NotAuthenticated."""
        assert self._exchange is not None, "challenged"
        (proof,) = _PROOF.unpack(frame)
        _check(proof, self._exchange.proof(_CLIENT), self._exchange.client_role, clients)


def _check(proof: bytes, right: bytes, role: bytes, roles: Collection[CallerRole]) -> None:
    if not hmac.compare_digest(proof, right):
        raise NotAuthenticated("it does not know the secret of this cluster")
    if role not in [_padded(one) for one in roles]:
        raise NotAuthenticated("its role may not do this")


def _padded(text: str) -> bytes:
    return text.encode().ljust(16, b"\0")


def _secret(credentials: Credentials) -> bytes:
    assert credentials.secret is not None, "without credentials there is no handshake"
    return credentials.secret


# -- sockets of threads


def wrapped(sock: socket.socket, credentials: Credentials, *, server: bool) -> socket.socket:
    """Returns the socket to talk over from now on, before the handshake: the given one is of no use then.
    server: this end has accepted the connection. Errors: OSError."""
    if credentials.certificates is None:
        return sock
    now = credentials.certificates.current()
    context = now.server if server else now.client
    return context.wrap_socket(sock, server_side=server, do_handshake_on_connect=False)


def prove(
    sock: socket.socket,
    credentials: Credentials,
    purpose: Purpose,
    peers: Collection[CallerRole],
    *,
    server: bool,
) -> None:
    """Shakes hands on a socket that `wrapped` has returned, HANDSHAKE_SECONDS at most; the socket's timeout
    is another one afterwards. peers: roles that the other end may have. Errors: NotAuthenticated, OSError."""
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(HANDSHAKE_SECONDS)  # of the whole handshake
        sock.do_handshake()
        check_certificate(sock, credentials, peers)
    elif credentials.secret is not None:
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        if server:
            ours = ServerHandshake(credentials, purpose)
            sock.sendall(ours.challenge(_frame(sock, deadline)))
            ours.finish(_frame(sock, deadline), peers)
        else:
            mine = ClientHandshake(credentials, purpose)
            sock.sendall(mine.hello())
            sock.sendall(mine.answer(_frame(sock, deadline), peers))


def _frame(sock: socket.socket, deadline: float) -> bytes:
    """Errors: OSError; TimeoutError at the deadline, however slowly bytes arrive."""
    frame = bytearray()
    while len(frame) < FRAME_BYTES:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        part = sock.recv(FRAME_BYTES - len(frame))
        if not part:
            raise ConnectionError("the peer closed the connection")
        frame += part
    return bytes(frame)


# -- streams of asyncio


async def prove_stream(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    credentials: Credentials,
    purpose: Purpose,
    peers: Collection[CallerRole],
    *,
    server: bool,
) -> None:
    """As `prove`, on a stream that was opened with the contexts of the credentials' certificates, if there
    are some. Errors: NotAuthenticated, OSError, EOFError."""
    if credentials.certificates is not None:
        check_certificate(writer.get_extra_info("ssl_object"), credentials, peers)
    elif credentials.secret is not None:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            if server:
                ours = ServerHandshake(credentials, purpose)
                writer.write(ours.challenge(await reader.readexactly(FRAME_BYTES)))
                ours.finish(await reader.readexactly(FRAME_BYTES), peers)
            else:
                mine = ClientHandshake(credentials, purpose)
                writer.write(mine.hello())
                writer.write(mine.answer(await reader.readexactly(FRAME_BYTES), peers))


def check_certificate(sock: Any, credentials: Credentials, peers: Collection[CallerRole]) -> None:
    """sock: an SSLSocket or SSLObject after its handshake. Errors: NotAuthenticated."""
    assert credentials.certificates is not None, "TLS"
    owner = credentials.certificates.owner_at(sock)
    if owner.role not in peers:
        raise NotAuthenticated(f"the certificate of a {owner.role} may not do this")
