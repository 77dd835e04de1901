"""HTTPS at the edge: its certificate, and the next one."""

import asyncio
import errno
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmserve.apiserver.http.listener.certificate import HttpCertificate
from llmserve.apiserver.http.listener.server import HttpServer
from llmserve.config.schema.limits import SecurityLimits
from llmserve.core.errors import LLMServeError, StartFailed
from llmserve.rpc.wires.authority import Authority
from tests.support.certificates import make_host_certificate

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("clients", 1.0)


def trusting(authority: Authority) -> ssl.SSLContext:
    from cryptography.hazmat.primitives.serialization import Encoding

    return ssl.create_default_context(cadata=authority.certificate.public_bytes(Encoding.PEM).decode())


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for name in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{name}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["scheme"].encode()})


@pytest.fixture
def certificate(tmp_path: Path, authority: Authority) -> HttpCertificate:
    return HttpCertificate(*make_host_certificate(authority, tmp_path))


@pytest.fixture
async def port(certificate: HttpCertificate) -> AsyncIterator[int]:
    server = HttpServer(app, "127.0.0.1:0", certificate=certificate)
    yield await server.start()
    await server.aclose()


async def serial(port: int, context: ssl.SSLContext) -> int:
    """Asks over a new connection. Returns the serial number of the certificate that it was shown."""
    async with (
        httpx.AsyncClient(verify=context) as client,
        client.stream("GET", f"https://127.0.0.1:{port}/") as answer,
    ):
        assert await answer.aread() == b"https"
        shown = answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
        return int(shown["serialNumber"], 16)


async def test_clients_reach_it_over_tls_only(port: int, authority: Authority) -> None:
    assert await serial(port, trusting(authority))
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        await serial(port, trusting(Authority.make("clients", 1.0)))
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.HTTPError):
            await client.get(f"http://127.0.0.1:{port}/")


async def test_new_connections_get_a_new_certificate(
    port: int, authority: Authority, certificate: HttpCertificate, tmp_path: Path
) -> None:
    context = trusting(authority)
    before = await serial(port, context)
    make_host_certificate(authority, tmp_path)
    certificate.renew()
    after = await serial(port, context)
    assert after != before
    certificate.renew()
    assert await serial(port, context) == after


async def test_half_a_change_is_not_taken(
    port: int, authority: Authority, certificate: HttpCertificate, tmp_path: Path
) -> None:
    context = trusting(authority)
    before = await serial(port, context)
    new = make_host_certificate(authority, tmp_path / "new")
    for path, taken in zip(new, (False, True), strict=True):
        path.replace(tmp_path / path.name)
        certificate.renew()
        assert (await serial(port, context) != before) is taken


def test_files_that_could_not_be_read_are_read_again(
    authority: Authority,
    certificate: HttpCertificate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Too many open files, say, when the certificate was renewed: nothing of it changes any more."""
    make_host_certificate(authority, tmp_path)
    caplog.set_level(logging.INFO)

    def fail(context: ssl.SSLContext, *_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(ssl.SSLContext, "load_cert_chain", fail)
        for _ in range(3):
            certificate.renew()
    assert caplog.text.count("too many open files") == 1
    certificate.renew()
    assert "the HTTP API has a new certificate" in caplog.text


@pytest.mark.parametrize("name", ["host.crt", "host.key"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_files_that_are_missing_or_wrong_are_named(
    tmp_path: Path, authority: Authority, name: str, content: bytes | None
) -> None:
    paths = make_host_certificate(authority, tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(StartFailed, match=r"security.tls: .*host\.crt"):
        HttpCertificate(*paths)


async def test_an_address_has_so_many_unfinished_handshakes_and_others_are_served(
    certificate: HttpCertificate, authority: Authority
) -> None:
    limits = SecurityLimits(connections_per_address=3)
    server = HttpServer(app, "127.0.0.1:0", limits=limits, certificate=certificate)
    port = await server.start()

    async def connect(context: ssl.SSLContext | None = None) -> Ends:
        return await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0), ssl=context)

    silent = [await connect() for _ in range(4)]
    async with asyncio.timeout(30):  # half of what a connection without headers gets
        assert await silent[-1][0].read() == b"", "one too many"
    assert not any(reader.at_eof() for reader, _ in silent[:-1])
    assert await serial(port, trusting(authority)), "of another address"
    silent[0][1].close()
    silent.append(await until_accepted(lambda: connect(trusting(authority))))
    for _, writer in silent:
        writer.close()
    await server.aclose()


async def until_accepted(connect: Callable[[], Awaitable[Ends]]) -> Ends:
    """Tries again until the server has noticed that another connection has gone."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await connect()
            except OSError:
                await asyncio.sleep(0.01)


async def test_who_never_shakes_hands_is_let_go_as_who_never_sends_headers(
    certificate: HttpCertificate,
) -> None:
    limits = SecurityLimits(header_seconds=0.05)
    server = HttpServer(app, "127.0.0.1:0", limits=limits, certificate=certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", await server.start())
    async with asyncio.timeout(10.0):
        assert await reader.read() == b""
    writer.close()
    await server.aclose()


async def test_a_server_that_takes_no_connections_any_more_says_so(
    certificate: HttpCertificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = HttpServer(app, "127.0.0.1:0", certificate=certificate)
    port = await server.start()

    def defect(address: str | None) -> bool:
        raise KeyError(address)

    monkeypatch.setattr(server._handshakes, "take", defect)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(5.0):
        with pytest.raises(LLMServeError, match="ended by itself"):
            await server.wait()
    writer.close()
    await server.aclose()
