"""Embeddings, scores and ranks: a model that pools, behind the router, keys and limits of all others."""

import base64
import struct
from typing import Any

import httpx
import msgspec
import openai
import pytest

from llmserve.core.errors import Overloaded
from llmserve.core.request import Outcome
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WORKER_ROLE_AGGREGATED
from tests.integration.apiserver.manifests import manifest_of

FIRST = 2  # the token of byte 0


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    return manifest_of(
        engine={"task": "embed"},
        deployment={"disaggregated": False},
        security={"api_keys": [{"tenant": "red", "key": "red-key", "max_priority": 2}]},
    )


@pytest.fixture
async def http(cluster: Any, http: httpx.AsyncClient) -> httpx.AsyncClient:
    pools = await cluster.add("pooling-0", WORKER_ROLE_AGGREGATED)
    await cluster.router.members(pools)
    http.headers["authorization"] = "Bearer red-key"
    return http


async def embed(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await http.post("/v1/embeddings", json={"model": "tiny", "input": "abc", **fields})


async def test_an_embedding_is_one_leg_at_one_worker(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await embed(http)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["embedding"] == [3.0, FIRST + ord("a")]
    assert answer.json()["usage"]["prompt_tokens"] == 3
    (worker,) = cluster.extra
    (leg,) = worker.seen.values()
    assert msgspec.msgpack.decode(leg.pooling_params)
    assert (leg.tenant, leg.limits.max_tokens, leg.sampling_params) == ("red", 1, b"")
    assert not cluster.prefill.seen
    assert not cluster.decode.seen
    (admit,) = cluster.router.admits
    assert (admit.tenant, admit.prompt_tokens, admit.max_output_tokens) == ("red", 3, 1)
    record = (await http.get(f"/v1/requests/{answer.headers['x-request-id']}/explain")).json()
    assert [one["prompt_tokens"] for one in record["sequences"]] == [3]
    await cluster.router.until(lambda: bool(cluster.router.done))
    assert [outcome for _, outcome in cluster.router.done] == [Outcome.COMPLETED]


async def test_each_input_is_admitted_by_itself(cluster: Any, http: httpx.AsyncClient) -> None:
    for inputs in (["a", "bb"], [[3], [3, 4]]):
        answer = await embed(http, input=inputs)
        assert [one["embedding"][0] for one in answer.json()["data"]] == [1.0, 2.0]
    assert len(cluster.router.admits) == 4


async def test_openai_s_client_reads_it(cluster: Any, http: httpx.AsyncClient) -> None:
    """It asks for base64."""
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="red-key", max_retries=0) as client:
        answer = await client.embeddings.create(model="tiny", input="abc")
    assert answer.data[0].embedding == [3.0, FIRST + ord("a")]
    encoded = (await embed(http, encoding_format="base64")).json()["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(encoded)) == (3.0, FIRST + ord("a"))


async def test_scores_and_ranks_are_made_of_embeddings(cluster: Any, http: httpx.AsyncClient) -> None:
    for path in ("/v1/score", "/score"):
        body = {"model": "tiny", "text_1": "abc", "text_2": ["abc", "a"]}
        scores = (await http.post(path, json=body)).json()["data"]
        assert scores[0]["score"] == pytest.approx(1.0)
        assert scores[1]["score"] < 1.0
    for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
        ranked: dict[str, Any] = {"model": "tiny", "query": "abc", "documents": ["a", "abc"], "top_n": 1}
        answer = await http.post(path, json=ranked)
        assert [one["index"] for one in answer.json()["results"]] == [1], answer.text


WRONG: list[tuple[dict[str, Any], int]] = [
    ({"model": "other"}, 404),
    ({"input": []}, 400),
    ({"input": "a" * 300}, 400),
    ({"dimensions": 1}, 400),
    ({"priority": -3}, 403),
    ({"request_id": "not plain"}, 400),
]


async def test_what_is_wrong_is_refused_before_the_router_is_asked(
    cluster: Any, http: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for fields, status in WRONG:
        with subtests.test(fields=fields, status=status):
            answer = await embed(http, **fields)
            assert answer.status_code == status, answer.text
            assert answer.json()["error"]["message"]
            assert not cluster.router.admits


async def test_keys_and_limits_hold(cluster: Any, http: httpx.AsyncClient) -> None:
    cluster.router.refuse_with = (Outcome.REJECTED, Overloaded("enough", retry_after_seconds=7))
    answer = await embed(http)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert (await http.post("/v1/embeddings", json={}, headers={"authorization": ""})).status_code == 401


async def test_a_lost_worker_costs_no_request(cluster: Any, http: httpx.AsyncClient) -> None:
    first, second = cluster.extra[0], await cluster.add("pooling-1", WORKER_ROLE_AGGREGATED)
    await first.crash()
    assert (await embed(http)).status_code == 200
    assert second.seen


async def test_there_is_nothing_that_generates(cluster: Any, http: httpx.AsyncClient) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/generate"):
        assert (await http.post(path, json={})).status_code == 404, path
    assert (await http.get("/v1/models")).json()["data"][0]["id"] == "tiny"
    assert (await http.get("/health")).status_code == 200
    assert (await http.post("/tokenize", json={"model": "tiny", "prompt": "abc"})).json()["count"] == 3
