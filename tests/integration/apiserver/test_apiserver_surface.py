"""Routes and settings that users of `vllm serve` expect, beside those that answer prompts."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.apiserver.manifests import manifest_of

ROOT = "/llm/tiny"
MESSAGES = [{"role": "user", "content": "abc"}]
CHAT = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4}
TEMPLATE = "{{ greeting }}:{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    return manifest_of(
        engine={"max_logprobs": 2},
        api={
            "root_path": ROOT,
            "public_docs": True,
            "tokenizer_info": True,
            "force_include_usage": True,
            "sse_keep_alive_seconds": 1,
            "stream_interval": 3,
            "chat_template": TEMPLATE,
            "chat_template_kwargs": {"greeting": "hello"},
        },
        security={"api_keys": [{"tenant": "red", "key": "red-key"}]},
    )


@pytest.fixture
def http(http: httpx.AsyncClient) -> httpx.AsyncClient:
    http.headers["authorization"] = "Bearer red-key"
    return http


async def test_conversations_of_a_batch_are_answered_each_as_alone(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    conversations = [MESSAGES, [{"role": "user", "content": "abcdefg"}]]
    batch = await http.post("/v1/chat/completions/batch", json={**CHAT, "messages": conversations})
    alone = [
        (await http.post("/v1/chat/completions", json={**CHAT, "messages": one})).json()
        for one in conversations
    ]
    assert [choice["message"]["content"] for choice in batch.json()["choices"]] == [
        answer["choices"][0]["message"]["content"] for answer in alone
    ]
    assert len(cluster.router.admits) == 4


async def test_an_event_carries_as_many_tokens_as_the_manifest_says(http: httpx.AsyncClient) -> None:
    """But the first one, which is not waited for, and the last one."""
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 9, "stream": True, "return_token_ids": True}
    answer = await http.post("/v1/completions", json=body)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    assert [len(choice["token_ids"]) for choice in choices] == [1, 3, 3, 2]


@pytest.mark.parametrize("body", [CHAT, {"model": "tiny", "prompt": "abc", "max_tokens": 4}])
async def test_sagemaker_s_one_route_takes_what_the_others_take(
    cluster: Any, http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    answer = await http.post("/invocations", json=body)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_ping_is_health(cluster: Any, http: httpx.AsyncClient, method: str) -> None:
    del http.headers["authorization"]
    assert (await http.request(method, "/ping")).status_code == 200
    await cluster.router.members()
    async with asyncio.timeout(30):
        while (answer := await http.request(method, "/ping")).status_code == 200:
            pass
    assert (answer.status_code, answer.json()["reason"]) == (503, "no worker is available")


async def test_load_counts_what_this_apiserver_serves(cluster: Any, http: httpx.AsyncClient) -> None:
    cluster.decode.pause_at = 1
    async with asyncio.TaskGroup() as group:
        group.create_task(http.post("/v1/chat/completions", json={**CHAT, "n": 2}))
        await cluster.decode.until(lambda: len(cluster.decode.seen) == 2)
        assert (await http.get("/load")).json() == {"server_load": 2}
        cluster.decode.go.set()
    await cluster.settled()
    assert (await http.get("/load")).json() == {"server_load": 0}


async def test_metrics_say_where_those_of_vllm_are(cluster: Any, http: httpx.AsyncClient) -> None:
    page = (await http.get("/metrics")).text
    assert "# vllm:* is counted by the workers" in page
    assert "apiserver_requests" in {family.name for family in text_string_to_metric_families(page)}


async def test_what_describes_the_api_needs_no_key(cluster: Any) -> None:
    async with httpx.AsyncClient(base_url=cluster.url) as stranger:
        for path in ("/docs", "/redoc", "/openapi.json", "/version", f"{ROOT}/docs"):
            assert (await stranger.get(path)).status_code == 200
        for path in ("/v1/models", "/tokenizer_info", f"{ROOT}/v1/models", "/docsx"):
            assert (await stranger.get(path)).status_code == 401


@pytest.mark.parametrize("base", ["", ROOT], ids=["taken off", "left on"])
async def test_the_root_path_may_be_taken_off_by_the_proxy_or_left_on(cluster: Any, base: str) -> None:
    url = f"{cluster.url}{base}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="red-key", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["tiny"]
    async with httpx.AsyncClient(base_url=f"{cluster.url}{base}") as stranger:
        assert (await stranger.get("/health")).status_code == 200
        assert (await stranger.get("/openapi.json")).json()["servers"] == [{"url": ROOT}]
        refused = await stranger.post("/v1/messages", json={})
        assert (refused.status_code, refused.json()["type"]) == (401, "error")  # Anthropic's shape


async def test_another_path_is_not_the_root_path(cluster: Any, http: httpx.AsyncClient) -> None:
    assert (await http.get(f"{ROOT}x/v1/models")).status_code == 404


async def test_every_stream_ends_with_its_usage(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 4


async def test_a_quiet_stream_carries_comments(cluster: Any, http: httpx.AsyncClient) -> None:
    cluster.decode.pause_at = 1
    async with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith(":"):
                cluster.decode.go.set()
                break
        else:
            raise AssertionError("the stream ended without a comment")


@pytest.mark.parametrize(("kwargs", "said"), [({}, "hello:abc"), ({"greeting": "hi"}, "hi:abc")])
async def test_the_manifest_s_chat_template_and_its_arguments(
    cluster: Any, http: httpx.AsyncClient, kwargs: dict[str, str], said: str
) -> None:
    await http.post("/v1/chat/completions", json={**CHAT, "chat_template_kwargs": kwargs})
    (prefill,) = cluster.prefill.seen.values()
    tokens = await http.post("/detokenize", json={"model": "tiny", "tokens": list(prefill.prompt_token_ids)})
    assert tokens.json()["prompt"] == said


async def test_no_more_logprobs_than_the_manifest_allows(cluster: Any, http: httpx.AsyncClient) -> None:
    for top, status in ((2, 200), (3, 400)):
        answer = await http.post("/v1/chat/completions", json={**CHAT, "logprobs": True, "top_logprobs": top})
        assert answer.status_code == status, answer.text


async def test_the_tokenizer_s_configuration_is_served_when_asked_for(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    assert (await http.get("/tokenizer_info")).json()["chat_template"]


async def test_generative_scoring_is_of_the_labels_alone(cluster: Any, http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "query": "is it ", "items": ["a", "b"], "label_token_ids": [5, 6]}
    answer = await http.post("/generative_scoring", json=body)
    assert answer.status_code == 200, answer.text
    # Of the two, the first is half a point likelier: 1 / (1 + exp(-0.5)).
    assert [round(item["score"], 3) for item in answer.json()["data"]] == [0.622, 0.622]
    assert not cluster.decode.seen
