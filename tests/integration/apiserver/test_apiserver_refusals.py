"""What is refused, with which status, and that nothing is left of it."""

from typing import Any

import httpx
import pytest

from llmserve.core.errors import NoWorkerAvailable, QueueFull, QueueTimeout
from llmserve.core.request import Outcome

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


async def chat(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json={**CHAT, **fields})


OVERLOADS: list[tuple[Any, int]] = [
    (QueueFull("1024 requests wait already", retry_after_seconds=3.0), 429),
    (QueueTimeout("waited 60 s"), 503),
    (NoWorkerAvailable("no decode worker", retry_after_seconds=7.0), 503),
]


async def test_overload_has_a_status_also_when_streamed(
    cluster: Any, http: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for stream in (False, True):
        for error, status in OVERLOADS:
            with subtests.test(stream=stream, error=error, status=status):
                rejected = cluster.count("apiserver_requests_total", outcome="rejected")
                cluster.router.refuse_with = (Outcome.REJECTED, error)
                response = await chat(http, stream=stream)
                assert response.status_code == status
                assert response.headers["content-type"] == "application/json"
                assert response.headers["retry-after"] == str(int(error.retry_after_seconds or 1))
                assert response.json()["error"]["message"] == error.message
                assert response.json()["error"]["code"] == status
                assert cluster.count("apiserver_requests_total", outcome="rejected") == rejected + 1
                cluster.router.refuse_with = None
                assert (await chat(http)).status_code == 200


async def test_anthropic_s_errors_have_its_shape(cluster: Any, http: httpx.AsyncClient) -> None:
    cluster.router.refuse_with = (Outcome.REJECTED, QueueFull("full"))
    for stream in (False, True):
        response = await http.post("/v1/messages", json={**CHAT, "stream": stream})
        assert response.status_code == 429
        assert response.json() == {
            "type": "error",
            "error": {"type": "rate_limit_error", "message": "full"},
            "request_id": response.headers["request-id"],
        }


WRONG: list[dict[str, Any]] = [
    {"temperature": 3.0},
    {"top_p": 0.0},
    {"max_tokens": 0},
    {"max_tokens": "many"},
    {"n": 0},
    {"logprobs": True, "top_logprobs": 1000},
    {"stop_token_ids": [10**9]},
    {"logit_bias": {"99999": 1}},
    {"messages": []},
    {"messages": "hello"},
    {"kv_transfer_params": {"do_remote_prefill": True}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}},
]


async def test_wrong_parameters_are_400(
    cluster: Any, http: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for stream in (False, True):
        for wrong in WRONG:
            with subtests.test(stream=stream, wrong=wrong):
                response = await chat(http, stream=stream, **wrong)
                assert response.status_code == 400, response.text
                assert response.json()["error"]["message"]
                assert not cluster.router.admits


async def test_a_prompt_over_the_model_s_length_is_400(
    cluster: Any, http: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for stream in (False, True):
        for length in (200, 5000):
            with subtests.test(stream=stream, length=length):
                response = await chat(
                    http, stream=stream, messages=[{"role": "user", "content": "x" * length}]
                )
                assert response.status_code == 400, response.text
                assert response.json()["error"]["code"] == 400
                assert not cluster.router.admits


async def test_an_unknown_model_is_404(cluster: Any, http: httpx.AsyncClient) -> None:
    response = await chat(http, model="gpt-7")
    assert response.status_code == 404
    assert "gpt-7" in response.json()["error"]["message"]


async def test_an_unknown_path_is_404_in_openai_s_shape(cluster: Any, http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/nonsense", json={})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == 404


NO_REQUESTS: list[bytes] = [b"", b"{", b"[1]", b"\xff\xfe", b"null", b'{"model": "tiny"']


async def test_a_body_that_is_no_request_is_400(
    cluster: Any, http: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for body in NO_REQUESTS:
        with subtests.test(body=body):
            headers = {"content-type": "application/json"}
            response = await http.post("/v1/chat/completions", content=body, headers=headers)
            assert response.status_code == 400, response.text
            assert response.json()["error"]["code"] == 400


async def test_a_huge_body_is_413(cluster: Any, http: httpx.AsyncClient) -> None:
    response = await chat(http, messages=[{"role": "user", "content": "x" * 200_000}])
    assert response.status_code == 413
    assert response.json()["error"]["code"] == 413


async def test_a_huge_body_of_unknown_length_is_413(cluster: Any, http: httpx.AsyncClient) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b" " * 10_000

    response = await http.post("/v1/chat/completions", content=pieces())
    assert response.status_code == 413


async def test_health_says_what_is_missing(cluster: Any, http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).status_code == 200
    await cluster.router.members()
    response = await until_status(cluster, http, 503)
    assert response.json()["reason"] == "no worker is available"
    await cluster.router.members(cluster.prefill)  # it serves whole requests, while there is no decode worker
    await until_status(cluster, http, 200)


async def until_status(cluster: Any, http: httpx.AsyncClient, status: int) -> httpx.Response:
    for _ in range(200):
        response = await http.get("/health")
        if response.status_code == status:
            return response
    raise AssertionError(f"still {response.status_code}: {response.text}")
