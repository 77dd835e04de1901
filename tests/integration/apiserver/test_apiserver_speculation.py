"""Engines that speculate: several tokens arrive at once, and what such engines would ignore is refused."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from llmserve.core.request import Acceptance
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WORKER_ROLE_DECODE

REQUEST = {"model": "tiny", "prompt": "abc", "max_tokens": 12}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    """The draft is not loaded here: nothing but its being there counts."""
    models = {"primary": {"source": "hub:some/model"}, "draft": {"source": "hub:some/draft"}}
    return {"kind": "LLMServe", "models": models, "engine": {"speculative_tokens": 3}}


@pytest.fixture(autouse=True)
def _several(cluster: Any) -> None:
    cluster.decode.at_once = 4
    cluster.decode.acceptance = Acceptance(steps=3, proposed_tokens=9, accepted_tokens=8)


def said(cluster: Any, tokens: int = 12, first: int = 3) -> str:
    text = cluster.decode.text
    return bytes(text[(first + i) % len(text)] for i in range(tokens)).decode()


async def ask(http: httpx.AsyncClient, **fields: Any) -> Any:
    response = await http.post("/v1/completions", json={**REQUEST, **fields})
    return response.json()


async def events(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    body = {**REQUEST, "stream": True, "stream_options": {"include_usage": True}, **fields}
    async with http.stream("POST", "/v1/completions", json=body) as response:
        lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("fields", [{"min_p": 0.1}, {"logit_bias": {"5": 1}}])
async def test_what_engines_would_ignore_is_refused(
    cluster: Any, http: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    answer = await ask(http, **fields)
    assert answer["error"]["code"] == 400
    assert "min_p and logit_bias" in answer["error"]["message"]
    assert not cluster.router.admits, "no engine was asked"
    assert (await ask(http, min_p=0.0))["choices"][0]["text"] == said(cluster)


async def test_text_and_usage_are_as_without(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await ask(http)
    assert answer["choices"][0]["text"] == said(cluster)
    assert answer["usage"]["completion_tokens"] == 12
    streamed = await events(http)
    texts = [choice["text"] for event in streamed for choice in event["choices"]]
    assert "".join(texts) == said(cluster)
    assert any(len(text) == 4 for text in texts)
    assert streamed[-1]["usage"]["completion_tokens"] == 12


async def test_a_stop_string_within_the_tokens_of_a_step(
    cluster: Any, http: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    """What was drawn past it is neither shown nor counted, wherever in a step it ends."""
    for length in range(2, 9):
        with subtests.test(length=length):
            stop = said(cluster)[length - 2 : length]
            answer = await ask(http, stop=[stop], logprobs=1)
            (choice,) = answer["choices"]
            shown = said(cluster).index(stop)
            assert (choice["text"], choice["finish_reason"]) == (said(cluster)[:shown], "stop")
            assert answer["usage"]["completion_tokens"] == shown + 2
            assert len(choice["logprobs"]["tokens"]) == shown + 2
            *streamed, usage = await events(http, stop=[stop])
            assert (
                "".join(choice["text"] for event in streamed for choice in event["choices"])
                == said(cluster)[:shown]
            )
            assert usage["usage"]["completion_tokens"] == shown + 2


async def test_several_choices(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await ask(http, prompt="x" * 40, n=3, seed=7)
    assert [choice["text"] for choice in answer["choices"]] == [said(cluster, first=40)] * 3
    assert answer["usage"]["completion_tokens"] == 36


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="goes on from its tokens"),
        pytest.param({"seed": 1, "temperature": 1.0}, id="runs again"),
        pytest.param({"presence_penalty": 0.5, "temperature": 0.0, "logprobs": 1}, id="with logprobs"),
    ],
)
@pytest.mark.parametrize("lost_at", [2, 6, 9])
async def test_a_stream_whose_worker_is_lost_repeats_and_leaves_out_nothing(
    cluster: Any, http: httpx.AsyncClient, how: dict[str, Any], lost_at: int
) -> None:
    """The other worker gives other numbers of tokens at once, so that steps begin within known tokens."""
    other = await cluster.add("decode-1", WORKER_ROLE_DECODE)
    other.at_once = 3
    cluster.decode.pause_at = lost_at
    task = asyncio.create_task(events(http, **how))
    await cluster.decode.until(lambda: bool(cluster.decode.seen))
    await asyncio.sleep(0)
    await cluster.decode.crash()
    *streamed, usage = await task
    choices = [choice for event in streamed for choice in event["choices"]]
    assert "".join(choice["text"] for choice in choices) == said(cluster)
    assert usage["usage"]["completion_tokens"] == 12
    if "logprobs" in how:
        rows = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
        assert "".join(rows) == said(cluster)


async def test_explain_says_what_became_of_proposals(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await ask(http)
    record = (await http.get(f"/v1/requests/{answer['id']}/explain")).json()
    assert record["sequences"][0]["speculation"]["accepted_tokens"] == 8
    assert record["sequences"][0]["output_tokens"] == 12
