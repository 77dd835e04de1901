"""vLLM's own fetching of media, as an apiserver has set it up."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from llmserve.apiserver.limits.fetching import MediaConnection
from llmserve.core.errors import InvalidRequest
from llmserve.engines.vllm.environment import set_apiserver_environment


@pytest.fixture
async def asked() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server on this machine that redirects to itself: its port, and what it was asked."""
    lines: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], lines
    server.close()


@pytest.mark.parametrize("hosts", [("localhost",), ("localhost", "127.0.0.1", "::1")])
async def test_only_an_address_that_is_allowed_is_asked_and_no_redirect_is_followed(
    asked: tuple[int, list[bytes]], hosts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_apiserver_environment()
    from vllm import envs
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    port, lines = asked
    for proxy in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(proxy, f"http://127.0.0.1:{port}")
    connection = MediaConnection(frozenset(hosts))
    connection.register()
    fetching = MEDIA_CONNECTOR_REGISTRY.load(envs.VLLM_MEDIA_CONNECTOR, allowed_media_domains=list(hosts))
    try:
        with pytest.raises(Exception) as refused:  # noqa: PT011 - of vLLM, when there is no image
            await fetching.fetch_image_async(f"http://localhost:{port}/image.png")
    finally:
        await connection.aclose()
    is_allowed = len(hosts) > 1
    assert lines == ([b"GET /image.png HTTP/1.1"] if is_allowed else [])
    assert isinstance(refused.value, InvalidRequest) != is_allowed
    with pytest.raises(InvalidRequest):
        fetching.fetch_image(f"http://localhost:{port}/image.png")
