"""Streams that go on elsewhere: which do, and what bounds how many."""

from typing import Any

import httpx
import pytest

from llmserve.core.errors import WorkerDraining, WorkerLost
from llmserve.core.request import Outcome
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WORKER_ROLE_DECODE
from tests.integration.apiserver.manifests import manifest_of

from .test_apiserver_failures import expected, pieces, post, running

SCHEMA = {"type": "json_schema", "json_schema": {"name": "any", "schema": {"type": "object"}}}
RUN_AGAIN = {
    "a seed": {"seed": 1, "temperature": 1.0},
    "presence penalty, greedy": {"presence_penalty": 1, "temperature": 0},
    "frequency penalty and a seed": {"frequency_penalty": 1, "temperature": 1.0, "seed": 1},
    "a grammar, greedy": {"response_format": SCHEMA, "temperature": 0},
    "bad words, greedy": {"bad_words": ["xyzzy"], "temperature": 0},
}
GO_ON = {
    "sampled": {"temperature": 1.0},
    "stop strings": {"temperature": 0, "stop": ["never said"]},
    "logprobs": {"temperature": 0, "logprobs": 2},
    "repetition penalty, bias, minimum": {
        "temperature": 0,
        "repetition_penalty": 1.2,
        "logit_bias": {"5": 1},
        "min_tokens": 4,
    },
}


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    return manifest_of(
        scheduling={"token_timeout_seconds": 0.3, "first_token_timeout_seconds": 0.3, "retry_burst": 3}
    )


async def stream_that_loses_decode(
    cluster: Any, http: httpx.AsyncClient, **fields: Any
) -> list[dict[str, Any]]:
    """decode-0 dies after three tokens; decode-1 is there."""
    other = await cluster.add("decode-1", WORKER_ROLE_DECODE)
    cluster.decode.pause_at = other.pause_at = 3
    other.go.set()
    async with running(http, True, **fields) as task:
        await cluster.decode.until(lambda: bool(cluster.decode.seen))
        await cluster.router.until(lambda: bool(cluster.router.first_tokens))
        await cluster.decode.turn()
        await cluster.decode.crash()
        return pieces(await task)


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


@pytest.mark.parametrize("fields", RUN_AGAIN.values(), ids=RUN_AGAIN)
async def test_what_keeps_state_runs_again_and_the_user_sees_each_token_once(
    cluster: Any, http: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    chunks = await stream_that_loses_decode(cluster, http, **fields)
    assert text_of(chunks) == expected(cluster)
    assert cluster.count("apiserver_retries_total", way="replayed") == 1
    (again,) = cluster.extra[0].seen.values()
    assert len(again.prompt_token_ids) == len("abc"), "from its prompt"
    assert again.limits.max_tokens == 8


@pytest.mark.parametrize("fields", GO_ON.values(), ids=GO_ON)
async def test_what_keeps_no_state_goes_on(
    cluster: Any, http: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    chunks = await stream_that_loses_decode(cluster, http, **fields)
    assert text_of(chunks) == expected(cluster)
    assert cluster.count("apiserver_retries_total", way="continued") == 1
    (again,) = cluster.extra[0].seen.values()
    assert len(again.prompt_token_ids) > len("abc"), "from what was sent"


async def test_the_logprobs_of_a_stream_that_ran_again_are_whole(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    chunks = await stream_that_loses_decode(cluster, http, logprobs=1, seed=1, temperature=1.0)
    tokens = [token for chunk in chunks for token in chunk["choices"][0]["logprobs"]["tokens"]]
    assert "".join(tokens) == expected(cluster)


async def test_each_choice_goes_on(cluster: Any, http: httpx.AsyncClient) -> None:
    chunks = await stream_that_loses_decode(cluster, http, n=3, seed=1, temperature=1.0)
    for index in range(3):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == expected(cluster)


async def test_one_that_says_something_else_the_second_time_is_an_error_not_a_mixture(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    other = await cluster.add("decode-1", WORKER_ROLE_DECODE)
    other.text = b"not what it said before, not at all. "
    cluster.decode.pause_at = 3
    async with running(http, True, seed=1, temperature=1.0) as task:
        await cluster.router.until(lambda: bool(cluster.router.first_tokens))
        await cluster.decode.crash()
        chunks = pieces(await task)
    assert "says something else" in chunks[-1]["error"]["message"]
    assert chunks[-1]["error"]["code"] == 503


async def test_a_worker_that_stalls_is_given_up_and_another_tried(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    await cluster.add("decode-1", WORKER_ROLE_DECODE)
    cluster.decode.pause_at = 3
    response = await post(http, temperature=0)
    assert response.json()["choices"][0]["text"] == expected(cluster)
    assert cluster.router.failed_workers == ["decode-0"]
    assert cluster.count("apiserver_worker_failures_total", error="WorkerStalled") == 1
    await cluster.decode.until(lambda: bool(cluster.decode.aborted))


async def test_a_prefill_that_stalls_with_no_other_is_503(cluster: Any, http: httpx.AsyncClient) -> None:
    cluster.prefill.pause_at = 0
    response = await post(http)
    assert response.status_code == 503
    assert "no worker is left" in response.text


async def test_retries_end_when_the_budget_is_used_up(cluster: Any, http: httpx.AsyncClient) -> None:
    await cluster.add("decode-1", WORKER_ROLE_DECODE)
    cluster.decode.fail_with = WorkerLost("it is gone")
    for _ in range(3):
        assert (await post(http)).status_code == 200
    refused = await post(http)
    assert refused.status_code == 503
    assert "it is gone" in refused.text
    assert "scheduling.retry_share" in refused.text
    assert cluster.count("apiserver_retries_refused_total") == 1


async def test_a_drain_costs_no_retries(cluster: Any, http: httpx.AsyncClient) -> None:
    await cluster.add("decode-1", WORKER_ROLE_DECODE)
    cluster.decode.fail_with = WorkerDraining("it is to stop")
    for _ in range(5):
        assert (await post(http)).status_code == 200
    assert cluster.count("apiserver_retries_refused_total") == 0


async def test_a_router_that_does_not_answer_is_503_in_the_end(
    cluster: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.router.hold = True
    limits = cluster.apiserver.models.first.client._context.limits
    object.__setattr__(limits, "admission", 0.2)
    response = await post(http)
    assert response.status_code == 503
    assert "no place within 0.2 s" in response.text
    await cluster.router.until(lambda: bool(cluster.router.done))
    assert cluster.router.done[0][1] is Outcome.FAILED
