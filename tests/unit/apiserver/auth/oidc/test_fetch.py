"""What is fetched from an issuer, from a real server of HTTP that answers badly."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from aiohttp import web

from llmserve.apiserver.auth.oidc import fetch as fetch_module
from llmserve.apiserver.auth.oidc.fetch import fetch_json
from llmserve.core.errors import Unavailable

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def _found(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/good")


async def _large(request: web.Request) -> web.StreamResponse:
    return web.json_response({"keys": ["x" * 300_000]})


async def _endless(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(b" " * 65536)


def _text(text: str, status: int = 200) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, status=status)

    return answer


@pytest_asyncio.fixture
async def url() -> AsyncIterator[str]:
    app = web.Application()
    for path, handler in {
        "/good": _text('{"a": 1}'),
        "/moved": _found,
        "/large": _large,
        "/endless": _endless,
        "/missing": _text("{}", 404),
        "/list": _text("[]"),
        "/html": _text("<html>"),
        "/deep": _text("[" * 200_000),
    }.items():
        app.router.add_get(path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_small_object_is_fetched(url: str) -> None:
    assert await fetch_json(f"{url}/good") == {"a": 1}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/moved", "answers with status 302"),
        ("/missing", "answers with status 404"),
        ("/large", "more than 262144 bytes"),
        ("/endless", "more than 262144 bytes"),
        ("/list", "no JSON object"),
        ("/html", "no JSON"),
        ("/deep", "no JSON"),
    ],
)
async def test_a_bad_answer_is_none(url: str, path: str, message: str) -> None:
    with pytest.raises(Unavailable, match=message):
        await fetch_json(f"{url}{path}")


@pytest.mark.parametrize(
    "wrong", ["http://example.com/", "ftp://localhost/", "file:///etc/passwd", "localhost"]
)
async def test_only_https_or_this_machine_is_asked(wrong: str) -> None:
    with pytest.raises(Unavailable, match="is not asked"):
        await fetch_json(wrong)


async def test_nobody_waits_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_SECONDS", 0.05)
    connected: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: connected.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    with pytest.raises(Unavailable, match=r"does not answer within 0.05 s"):
        await fetch_json(f"http://127.0.0.1:{port}/")
    silent.close()
    for writer in connected:
        writer.close()
        await writer.wait_closed()
    with pytest.raises(Unavailable, match="cannot be asked"):
        await fetch_json(f"http://127.0.0.1:{port}/")
