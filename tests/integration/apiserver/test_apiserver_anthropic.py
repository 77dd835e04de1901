"""Anthropic's API with its own client: errors, streams, prefilled answers, models."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import pytest
import pytest_asyncio

from llmserve.core.errors import NoWorkerAvailable, QueueFull, StreamLost
from llmserve.core.request import Outcome
from tests.integration.apiserver.manifests import manifest_of

USER: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    return manifest_of(security={"api_keys": [{"tenant": "red", "key": "red-key"}]})


@pytest_asyncio.fixture
async def client(cluster: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=cluster.url, api_key="red-key", max_retries=0) as made:
        yield made


def text_after(cluster: Any, prompt_tokens: int, tokens: int) -> str:
    text = cluster.decode.text
    return bytes(text[(prompt_tokens + i) % len(text)] for i in range(tokens)).decode()


async def say(client: anthropic.AsyncAnthropic, **fields: Any) -> Any:
    return await client.messages.create(**{"model": "tiny", "max_tokens": 4, "messages": USER, **fields})


async def failure(client: anthropic.AsyncAnthropic, **fields: Any) -> anthropic.APIStatusError:
    with pytest.raises(anthropic.APIStatusError) as raised:
        await say(client, **fields)
    return raised.value


def assert_documented(error: anthropic.APIStatusError, kind: str) -> None:
    """The body is the documented one, and its request_id is the header's."""
    body: Any = error.body
    assert set(body) == {"type", "error", "request_id"}
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["error"]["message"]
    assert error.request_id
    assert body["request_id"] == error.request_id == error.response.headers["x-request-id"]


WRONG: list[dict[str, Any]] = [
    {"max_tokens": 0},
    {"max_tokens": "many"},
    {"messages": "hello"},
    {"messages": [{"role": "nobody", "content": "hello"}]},
    {"messages": [{"role": "user", "content": "x" * 500}]},
    {"temperature": 3.0},
    {"tools": [{"name": "f"}]},
    {"thinking": {"type": "enabled", "budget_tokens": 1}},
]


async def test_wrong_fields_are_invalid_requests(
    client: anthropic.AsyncAnthropic, subtests: pytest.Subtests
) -> None:
    for wrong in WRONG:
        for stream in (False, True):
            with subtests.test(wrong=wrong, stream=stream):
                error = await failure(client, stream=stream, extra_body=wrong)
                assert isinstance(error, anthropic.BadRequestError)
                assert_documented(error, "invalid_request_error")


async def test_a_body_that_is_no_request(http: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
    for content in (b"", b"{", b"[1]", b"null", b'{"model": "tiny"'):
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            with subtests.test(content=content, path=path):
                headers = {"content-type": "application/json", "x-api-key": "red-key"}
                response = await http.post(path, content=content, headers=headers)
                assert response.status_code == 400
                assert response.json()["error"]["type"] == "invalid_request_error"
                assert response.json()["request_id"] == response.headers["request-id"]


async def test_an_unknown_model_is_not_found(client: anthropic.AsyncAnthropic) -> None:
    error = await failure(client, model="claude-9")
    assert isinstance(error, anthropic.NotFoundError)
    assert_documented(error, "not_found_error")
    assert "claude-9" in str(error.message)


async def test_a_wrong_key(cluster: Any) -> None:
    async with anthropic.AsyncAnthropic(base_url=cluster.url, api_key="no", max_retries=0) as stranger:
        error = await failure(stranger)
        assert isinstance(error, anthropic.AuthenticationError)
        assert_documented(error, "authentication_error")
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.models.list()


async def test_a_huge_body(client: anthropic.AsyncAnthropic) -> None:
    error = await failure(client, messages=[{"role": "user", "content": "x" * 200_000}])
    assert error.status_code == 413
    assert_documented(error, "request_too_large")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "raised", "kind"),
    [
        (QueueFull("full", retry_after_seconds=3.0), anthropic.RateLimitError, "rate_limit_error"),
        (NoWorkerAvailable("no worker"), anthropic.InternalServerError, "overloaded_error"),
    ],
)
async def test_overload(
    cluster: Any, client: anthropic.AsyncAnthropic, stream: bool, refusal: Any, raised: Any, kind: str
) -> None:
    cluster.router.refuse_with = (Outcome.REJECTED, refusal)
    error = await failure(client, stream=stream)
    assert isinstance(error, raised)
    assert_documented(error, kind)
    assert error.response.headers["retry-after"] == str(int(refusal.retry_after_seconds or 1))


async def test_paths_and_methods_that_are_not_there(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        await client.messages.batches.list()
    assert_documented(missing.value, "not_found_error")
    with pytest.raises(anthropic.APIStatusError) as wrong:
        await client.get("/v1/messages", cast_to=object)
    assert wrong.value.status_code == 405
    assert wrong.value.response.headers["allow"] == "POST"
    assert_documented(wrong.value, "invalid_request_error")


async def test_a_failure_in_a_stream_is_an_error_event(
    cluster: Any, client: anthropic.AsyncAnthropic
) -> None:
    cluster.decode.pause_at = 2
    stream = await say(client, max_tokens=9, stream=True)
    seen: list[str] = []

    async def read() -> None:
        async for event in stream:
            seen.append(event.type)
            if event.type == "content_block_delta":
                cluster.decode.fail_with = StreamLost("the worker is gone")
                cluster.decode.go.set()

    with pytest.raises(anthropic.APIStatusError) as raised:
        await read()
    assert seen[:2] == ["message_start", "content_block_start"]
    assert "message_stop" not in seen
    body: Any = raised.value.body
    assert body["error"] == {"type": "overloaded_error", "message": body["error"]["message"]}
    assert "the worker is gone" in body["error"]["message"]
    assert body["request_id"] == stream.response.headers["request-id"]


async def test_an_answer_and_a_stream(cluster: Any, client: anthropic.AsyncAnthropic) -> None:
    answer = await say(client, max_tokens=9)
    assert answer.content[0].text == text_after(cluster, 5, 9)
    assert answer.stop_reason == "max_tokens"
    assert answer._request_id
    async with client.messages.stream(model="tiny", max_tokens=9, messages=USER) as stream:
        streamed = await stream.get_final_message()
    assert streamed.content[0].type == "text"
    assert streamed.content[0].text == answer.content[0].text
    assert (streamed.usage.input_tokens, streamed.usage.output_tokens) == (5, 9)


@pytest.mark.parametrize("content", ["abc", [{"type": "text", "text": "abc"}]])
async def test_a_last_message_of_the_assistant_is_continued(
    cluster: Any, client: anthropic.AsyncAnthropic, content: Any
) -> None:
    messages: Any = [*USER, {"role": "assistant", "content": content}]
    counted = await client.messages.count_tokens(model="tiny", messages=messages)
    assert counted.input_tokens == 8
    answer = await say(client, messages=messages)
    assert answer.content[0].text == text_after(cluster, 8, 4)
    (request,) = cluster.prefill.seen.values()
    assert len(request.prompt_token_ids) == 8  # no end of turn after "abc"
    async with client.messages.stream(model="tiny", max_tokens=4, messages=messages) as stream:
        assert await stream.get_final_text() == answer.content[0].text


async def test_an_assistant_message_that_ends_with_a_tool_call_is_not_continued(
    cluster: Any, client: anthropic.AsyncAnthropic
) -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "7"}
    turns: Any = [{"role": "assistant", "content": [{"type": "text", "text": "abc"}, call]}]
    await say(client, messages=[*USER, *turns])
    await say(client, messages=[*USER, *turns, {"role": "user", "content": [result]}])
    first, second = cluster.prefill.seen.values()
    assert list(first.prompt_token_ids)[8:] == [1]  # the end of the turn
    assert len(second.prompt_token_ids) == 10


async def test_models(client: anthropic.AsyncAnthropic) -> None:
    listed = [model async for model in client.models.list()]
    assert [(model.id, model.type) for model in listed] == [("tiny", "model")]
    one = await client.models.retrieve("tiny")
    assert (one.id, one.display_name, one.max_input_tokens) == ("tiny", "tiny", 200)
    assert one.created_at.year >= 2024
    with pytest.raises(anthropic.NotFoundError) as missing:
        await client.models.retrieve("claude-9")
    assert_documented(missing.value, "not_found_error")
