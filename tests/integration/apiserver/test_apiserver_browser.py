"""A page in a real browser (Debian's chromium) that uses the apiserver of another origin."""

import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Page

from llmserve.core.errors import QueueFull
from llmserve.core.request import Outcome
from tests.integration.apiserver.manifests import manifest_of
from tests.support.browser import open_browser

# What a page does, with the headers that OpenAI's client sends from a browser. The answer is read in pieces.
_ASK = """async ([url, key, body]) => {
  const headers = {"authorization": `Bearer ${key}`, "x-stainless-lang": "js"};
  if (body !== null) headers["content-type"] = "application/json";
  const options = body === null ? {headers} : {method: "POST", headers, body: JSON.stringify(body)};
  try {
    const response = await fetch(url, options);
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    const pieces = [];
    for (;;) {
      const {done, value} = await reader.read();
      if (done) break;
      pieces.push(decoder.decode(value, {stream: true}));
      if (window.gotPiece) await window.gotPiece();
    }
    return {status: response.status, pieces, headers: Object.fromEntries(response.headers)};
  } catch (error) {
    return {failed: `${error}`};
  }
}"""
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="session")
def page_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A web server with one empty page, as the origins http://127.0.0.1:PORT and http://localhost:PORT."""
    folder: Path = tmp_path_factory.mktemp("pages")
    (folder / "index.html").write_text("<!doctype html><title>A page</title>")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def manifest(page_port: int) -> dict[str, Any]:
    return manifest_of(
        security={
            "api_keys": [{"tenant": "red", "key": "red-key"}],
            "cors_origins": [f"http://127.0.0.1:{page_port}"],
        }
    )


@pytest_asyncio.fixture
async def page() -> AsyncIterator[Page]:
    async with open_browser() as browser:
        yield await browser.new_page()


async def test_a_page_reads_answers_streams_and_errors(cluster: Any, page: Page, page_port: int) -> None:
    async def ask(path: str, body: Any = None, key: str = "red-key") -> Any:
        return await page.evaluate(_ASK, [cluster.url + path, key, body])

    await page.goto(f"http://127.0.0.1:{page_port}/")
    models = await ask("/v1/models")
    assert models["status"] == 200, models
    assert '"tiny"' in "".join(models["pieces"])
    answer = await ask("/v1/chat/completions", CHAT)
    assert answer["status"] == 200, answer
    assert answer["headers"]["x-request-id"]
    assert (await ask("/v1/messages", CHAT))["headers"]["request-id"]
    assert (await ask("/v1/models", key="no"))["status"] == 401
    assert (await ask("/v1/nowhere"))["status"] == 404
    assert (await ask("/v1/chat/completions", {**CHAT, "max_tokens": 0}))["status"] == 400
    huge = {**CHAT, "messages": [{"role": "user", "content": "x" * 200_000}]}
    assert (await ask("/v1/chat/completions", huge))["status"] == 413
    cluster.router.refuse_with = (Outcome.REJECTED, QueueFull("full", retry_after_seconds=3.0))
    refused = await ask("/v1/chat/completions", {**CHAT, "stream": True})
    assert (refused["status"], refused["headers"]["retry-after"]) == (429, "3")


async def test_a_page_sees_a_stream_while_it_runs(cluster: Any, page: Page, page_port: int) -> None:
    cluster.decode.pause_at = 2  # the rest comes only once the page has something
    await page.expose_function("gotPiece", cluster.decode.go.set)
    await page.goto(f"http://127.0.0.1:{page_port}/")
    request = [f"{cluster.url}/v1/chat/completions", "red-key", {**CHAT, "stream": True}]
    streamed = await page.evaluate(_ASK, request)
    assert streamed["status"] == 200, streamed
    assert len(streamed["pieces"]) > 1
    assert "data: [DONE]" in "".join(streamed["pieces"])


async def test_a_page_of_another_origin_reads_nothing(cluster: Any, page: Page, page_port: int) -> None:
    await page.goto(f"http://localhost:{page_port}/")
    for body in (None, CHAT):
        path = "/v1/models" if body is None else "/v1/chat/completions"
        assert (
            "Failed to fetch" in (await page.evaluate(_ASK, [cluster.url + path, "red-key", body]))["failed"]
        )
    assert cluster.router.admits == []
