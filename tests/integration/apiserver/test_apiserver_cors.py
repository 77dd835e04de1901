"""What browsers are told: preflights without a key, and headers on every answer."""

from typing import Any

import httpx
import pytest

from llmserve.core.errors import QueueFull
from llmserve.core.request import Outcome
from tests.integration.apiserver.manifests import manifest_of

ORIGIN = "https://chat.example.com"
PAGE = {"origin": ORIGIN, "authorization": "Bearer red-key"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    return manifest_of(security={"api_keys": [{"tenant": "red", "key": "red-key"}], "cors_origins": [ORIGIN]})


def assert_for_the_page(response: httpx.Response) -> None:
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "Origin" in response.headers["vary"]
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "request-id", "retry-after", "x-llmserve-transport"} <= set(exposed)


PATHS: list[str] = ["/v1/chat/completions", "/v1/messages", "/v1/models", "/nowhere"]


async def test_a_preflight_needs_no_key(http: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
    for path in PATHS:
        with subtests.test(path=path):
            response = await http.options(path, headers=PREFLIGHT)
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == ORIGIN
            assert (
                response.headers["access-control-allow-headers"]
                == PREFLIGHT["access-control-request-headers"]
            )
            assert "POST" in response.headers["access-control-allow-methods"]
            assert int(response.headers["access-control-max-age"]) > 0
            assert "Origin" in response.headers["vary"]


@pytest.mark.parametrize(
    "path", ["/v1/files/file-1", "/admin/v1/models/tiny", "/admin/v1/adapters/red", "/admin/v1/bench"]
)
async def test_a_page_may_delete(http: httpx.AsyncClient, path: str) -> None:
    response = await http.options(path, headers={**PREFLIGHT, "access-control-request-method": "DELETE"})
    assert response.status_code == 200, response.text
    assert "DELETE" in response.headers["access-control-allow-methods"]


async def test_another_page_s_preflight_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.options("/v1/models", headers={**PREFLIGHT, "origin": "https://evil.example"})
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers


ANSWERS: list[tuple[int, str, str, bytes]] = [
    (200, "GET", "/v1/models", b""),
    (200, "GET", "/health", b""),
    (400, "POST", "/v1/chat/completions", b"{"),
    (400, "POST", "/v1/messages", b"{}"),
    (403, "POST", "/admin/reload", b""),
    (404, "GET", "/nowhere", b""),
    (405, "GET", "/v1/chat/completions", b""),
    (413, "POST", "/v1/chat/completions", b" " * 200_000),
]


async def test_every_answer_is_for_the_page(http: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
    for status, method, path, content in ANSWERS:
        with subtests.test(status=status, method=method, path=path):
            headers = {**PAGE, "content-type": "application/json"}
            response = await http.request(method, path, content=content, headers=headers)
            assert response.status_code == status, response.text
            assert_for_the_page(response)


async def test_a_refused_key_too(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/models", headers={"origin": ORIGIN})
    assert response.status_code == 401
    assert_for_the_page(response)


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_and_overload(cluster: Any, http: httpx.AsyncClient, stream: bool) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream}, headers=PAGE)
    assert answer.status_code == 200
    assert_for_the_page(answer)
    cluster.router.refuse_with = (Outcome.REJECTED, QueueFull("full"))
    refused = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream}, headers=PAGE)
    assert refused.status_code == 429
    assert_for_the_page(refused)


async def test_other_pages_and_programs_get_no_headers_of_it(http: httpx.AsyncClient) -> None:
    headers = {"authorization": "Bearer red-key"}
    for origin in ({}, {"origin": "https://evil.example"}):
        response = await http.get("/v1/models", headers={**headers, **origin})
        assert response.status_code == 200
        assert "access-control-allow-origin" not in response.headers
        assert "Origin" in response.headers["vary"]  # a cache must not give this answer to the page
