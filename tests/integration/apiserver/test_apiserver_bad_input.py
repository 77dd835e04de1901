"""What vLLM's validation lets through and no message can carry: 400, with the name of the field."""

import json
from typing import Any

import httpx
import pytest

from tests.support.poisoned import POISONED

_MESSAGES = [{"role": "user", "content": "hello"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "tiny", "prompt": "hello", "max_tokens": 2},
    "/v1/chat/completions": {"model": "tiny", "messages": _MESSAGES, "max_tokens": 2},
    "/v1/messages": {"model": "tiny", "messages": _MESSAGES, "max_tokens": 2},
    "/v1/responses": {"model": "tiny", "input": "hello", "max_output_tokens": 2},
}


async def post(http: httpx.AsyncClient, path: str, **fields: Any) -> httpx.Response:
    """As Python writes JSON: NaN as it is, and half a surrogate pair as an escape."""
    body = json.dumps({**ROUTES[path], **fields})
    headers = {"content-type": "application/json"}
    return await http.post(path, content=body, headers=headers)


def assert_refused(response: httpx.Response, field: str) -> None:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert field in error["message"]
    assert error.get("param", field) == field


BOTH = (False, True)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
async def test_a_priority_that_no_message_holds_is_400(
    cluster: Any, http: httpx.AsyncClient, path: str
) -> None:
    for stream in BOTH:
        for priority in (3_000_000_000, -3_000_000_000, 2**31, 2**70):
            assert_refused(await post(http, path, priority=priority, stream=stream), "priority")
        assert (await post(http, path, priority=-(2**31), stream=stream)).status_code == 200
    assert len(cluster.router.admits) == len(BOTH)


async def test_a_number_that_no_engine_can_be_sent_is_400(cluster: Any, http: httpx.AsyncClient) -> None:
    assert_refused(await post(http, "/v1/completions", top_k=10**30), "top_k")
    assert not cluster.router.admits


NOT_CARRIED: list[tuple[str, dict[str, Any]]] = [
    ("stop.1", {"stop": ["a", "\ud800"]}),
    ("user", {"user": "\udfff"}),
    ("model", {"model": "\ud800"}),
    ("metadata.a.b", {"metadata": {"a": {"b": "x\ud800"}}}),
    ("metadata.\\ud800", {"metadata": {"\ud800": 1}}),
    ("tools.0.function.name", {"tools": [{"type": "function", "function": {"name": "\ud800"}}]}),
    ("temperature", {"temperature": float("nan")}),
    ("top_p", {"top_p": float("-inf")}),
]


@pytest.mark.parametrize("path", ROUTES)
async def test_what_is_not_text_or_not_a_number_is_400(
    cluster: Any, http: httpx.AsyncClient, path: str
) -> None:
    for field, fields in NOT_CARRIED:
        for stream in BOTH:
            assert_refused(await post(http, path, stream=stream, **fields), field)
    assert not cluster.router.admits


NOT_JSON = [
    b'{"model": "tiny", "prompt": "\xed\xa0\x80"}',
    '{"model": "tiny", "prompt": "a"}'.encode("utf-16"),
    b'{"model": "tiny", "temperature": 1e999, "prompt": "a"}',
    b'{"model": "tiny", "repetition_penalty": 1e999, "prompt": "a"}',
    b'{"model": "tiny", "prompt": ' + b"[" * 101 + b"]" * 101 + b"}",
    b'{"model": "tiny", "prompt": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
    b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}",
]


async def test_a_body_that_json_does_not_allow_is_400(http: httpx.AsyncClient) -> None:
    for body in NOT_JSON:
        headers = {"content-type": "application/json"}
        response = await http.post("/v1/completions", content=body, headers=headers)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["message"]


async def test_text_that_only_looks_wrong_is_served(http: httpx.AsyncClient) -> None:
    for text in ("\U0001f600", "\ufeff", "\x00", "NaN", "Infinity \\ud800", "1e999"):
        assert (await post(http, "/v1/completions", prompt=text)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
async def test_a_field_of_a_kind_that_vllm_does_not_expect_is_400(http: httpx.AsyncClient, path: str) -> None:
    for stream in BOTH:
        for value in (3, [1], "a", True):
            response = await post(http, path, structured_outputs=value, stream=stream)
            assert response.status_code == 400, response.text
            assert response.json()["error"]["message"]


async def test_a_stream_that_cannot_begin_has_a_status(http: httpx.AsyncClient) -> None:
    response = await post(http, "/v1/responses", truncation=None, stream=True)
    assert response.status_code == 400
    assert "truncation" in response.json()["error"]["message"]


async def test_what_no_engine_can_compile_is_400_and_reaches_none(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    left = cluster.count("apiserver_retry_budget")
    for poisoned in POISONED:
        for stream in BOTH:
            response = await post(http, "/v1/completions", structured_outputs=poisoned, stream=stream)
            assert response.status_code == 400, (poisoned, response.text)
            assert response.json()["error"]["message"], poisoned
    assert not cluster.router.admits
    assert cluster.count("apiserver_retry_budget") == left
    good = await post(http, "/v1/completions", structured_outputs={"regex": "[a-z]+"})
    assert good.status_code == 200


PROMPTS: dict[str, Any] = {
    "/v1/completions": lambda text: {"prompt": text},
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/messages": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/responses": lambda text: {"input": text},
}


@pytest.mark.parametrize("path", ROUTES)
async def test_a_prompt_without_room_for_an_answer_is_told_both_lengths(
    cluster: Any, http: httpx.AsyncClient, path: str
) -> None:
    """The model takes 200 tokens, and this tokenizer makes one of each byte."""
    for stream in BOTH:
        response = await post(http, path, **PROMPTS[path]("a" * 200), stream=stream)
        assert response.status_code == 400
        message = response.json()["error"]["message"]
        assert "maximum context length is 200" in message
        assert "200 input tokens" in message
        assert (await post(http, path, **PROMPTS[path]("a" * 199), stream=stream)).status_code == 200
    assert (await http.post("/tokenize", json={"prompt": "a" * 200})).status_code == 200


FORGED_ID = "a\n2026-01-01 00:00:00,000 INFO router llmserve: forged\x1b[31m"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
async def test_an_id_that_is_not_plain_is_400(
    cluster: Any, http: httpx.AsyncClient, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    for given in (FORGED_ID, "x" * 20_000, "\x00"):
        for stream in BOTH:
            assert_refused(await post(http, path, request_id=given, stream=stream), "request_id")
    assert not cluster.router.admits
    assert "forged" not in caplog.text


async def test_an_unusable_header_names_nothing(cluster: Any, http: httpx.AsyncClient) -> None:
    headers = {"x-request-id": "x" * 20_000}
    response = await http.post("/v1/completions", json=ROUTES["/v1/completions"], headers=headers)
    assert response.status_code == 200
    assert len(response.headers["x-request-id"]) == 32
    assert len(cluster.router.admits[0].request_id) < 100
