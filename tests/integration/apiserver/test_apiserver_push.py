"""Requests whose KV is pushed: decode has them before prefill does."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from llmserve.core.errors import EngineDead
from llmserve.core.kv_params import PushParams, prefill_params
from llmserve.core.request import Outcome
from llmserve.rpc.codec import decode_params
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WORKER_ROLE_DECODE, WORKER_ROLE_PREFILL
from tests.integration.apiserver.conftest import FakeCluster

REQUEST = {"model": "tiny", "prompt": "abc", "max_tokens": 8}
WAIT_SECONDS = 30.0


@pytest_asyncio.fixture
async def cluster(tiny_model: Path, manifest: dict[str, Any]) -> AsyncIterator[FakeCluster]:
    started = FakeCluster(tiny_model)
    try:
        await started.start({**manifest, "transfer": {"mode": "push"}})
        yield started
    finally:
        await started.aclose()


def expected(cluster: FakeCluster, tokens: int = 8) -> str:
    text = cluster.decode.text
    return bytes(text[(3 + i) % len(text)] for i in range(tokens)).decode()


async def post(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await http.post("/v1/completions", json={**REQUEST, **fields})


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


async def ended(cluster: FakeCluster) -> None:
    await cluster.settled()
    await cluster.router.until(lambda: bool(cluster.router.done))


async def test_decode_is_asked_before_prefill(cluster: FakeCluster, http: httpx.AsyncClient) -> None:
    cluster.prefill.pause_at = 0
    response = asyncio.create_task(post(http))
    await cluster.prefill.until(lambda: bool(cluster.prefill.seen))
    await cluster.decode.until(lambda: bool(cluster.decode.seen))
    ((name, prefill),), ((same, decode),) = cluster.prefill.seen.items(), cluster.decode.seen.items()
    assert name == same
    assert decode_params(prefill.kv_transfer_params) == prefill_params(name)  # type: ignore[arg-type]
    card = PushParams.from_params(decode_params(decode.kv_transfer_params) or {})
    assert (card.transfer_id, card.worker_id, card.epoch) == (name, "prefill-0", 1)
    assert (card.endpoints, card.num_tokens, card.continues) == (("127.0.0.1:1",), 3, True)
    assert (prefill.limits.max_tokens, decode.limits.max_tokens) == (1, 7)
    assert list(decode.prompt_token_ids) == list(prefill.prompt_token_ids)
    cluster.prefill.go.set()
    assert text_of(await response) == expected(cluster)
    assert cluster.count("apiserver_handovers_total", mode="push") == 1
    assert cluster.count("apiserver_first_tokens_total", origin="prefill") == 1
    assert not cluster.prefill.released


async def test_the_first_token_does_not_wait_for_decode(
    cluster: FakeCluster, http: httpx.AsyncClient
) -> None:
    cluster.decode.pause_at = 0
    body = {**REQUEST, "stream": True}
    async with http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.aiter_lines()
        first = json.loads((await anext(lines)).removeprefix("data: "))
        assert first["choices"][0]["text"] == expected(cluster, 1)
        cluster.decode.go.set()
        rest = [json.loads(line[6:]) async for line in lines if line.startswith("data: {")]
    assert "".join(piece["choices"][0]["text"] for piece in rest) == expected(cluster)[1:]


@pytest.mark.parametrize("fields", [{"seed": 3, "temperature": 0.7}, {"presence_penalty": 0.5}])
async def test_a_token_that_is_not_exact_is_drawn_by_decode(
    cluster: FakeCluster, http: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    assert text_of(await post(http, **fields)) == expected(cluster)
    (decode,) = cluster.decode.seen.values()
    card = PushParams.from_params(decode_params(decode.kv_transfer_params) or {})
    assert not card.continues
    assert decode.limits.max_tokens == 8
    assert cluster.count("apiserver_first_tokens_total", origin="decode") == 1


async def test_a_single_token_needs_no_decode(cluster: FakeCluster, http: httpx.AsyncClient) -> None:
    assert text_of(await post(http, max_tokens=1)) == expected(cluster, 1)
    assert not cluster.decode.seen


async def test_a_request_that_ends_with_its_first_token_aborts_decode(
    cluster: FakeCluster, http: httpx.AsyncClient
) -> None:
    cluster.prefill.text = b"\0" * 200
    assert text_of(await post(http)) == ""
    await cluster.decode.until(lambda: bool(cluster.decode.aborted))
    await ended(cluster)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_during_prefill(
    cluster: FakeCluster, http: httpx.AsyncClient, stream: bool
) -> None:
    cluster.prefill.pause_at = 0
    task = asyncio.create_task(post(http, stream=stream))
    await cluster.prefill.until(lambda: bool(cluster.prefill.seen))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await cluster.prefill.until(lambda: bool(cluster.prefill.aborted))
    await cluster.decode.until(lambda: bool(cluster.decode.aborted))
    await ended(cluster)
    assert [outcome for _, outcome in cluster.router.done] == [Outcome.CANCELLED]


async def test_decode_that_fails_during_prefill_ends_it_at_once(
    cluster: FakeCluster, http: httpx.AsyncClient
) -> None:
    """The request is placed again, and the user cannot tell."""
    other = await cluster.add("decode-1", WORKER_ROLE_DECODE)
    cluster.prefill.pause_at = 0
    response = asyncio.create_task(post(http))
    await cluster.decode.until(lambda: bool(cluster.decode.seen))
    await cluster.prefill.until(lambda: bool(cluster.prefill.seen))
    await cluster.decode.crash()
    await cluster.prefill.until(lambda: bool(cluster.prefill.aborted))
    cluster.prefill.pause_at = None
    assert text_of(await response) == expected(cluster)
    assert other.seen


async def test_prefill_that_fails_aborts_decode(cluster: FakeCluster, http: httpx.AsyncClient) -> None:
    other = await cluster.add("prefill-1", WORKER_ROLE_PREFILL)
    cluster.prefill.fail_with = EngineDead("gone")
    assert text_of(await post(http)) == expected(cluster)
    assert len(cluster.decode.aborted) == 1
    assert other.seen


async def test_decode_that_did_not_learn_the_token_is_not_believed(
    cluster: FakeCluster, http: httpx.AsyncClient
) -> None:
    """It draws the first token again, and the user has it already: the request goes on elsewhere."""
    await cluster.add("prefill-1", WORKER_ROLE_PREFILL)
    cluster.decode.learns_first_token = False
    response = asyncio.create_task(post(http))
    await cluster.decode.until(lambda: len(cluster.decode.seen) == 2)
    cluster.decode.learns_first_token = True
    assert text_of(await response) == expected(cluster)
    first, second = cluster.decode.seen.values()
    assert len(second.prompt_token_ids) == len(first.prompt_token_ids) + 1
    assert cluster.count("apiserver_worker_failures_total", error="TransferError") == 1


async def test_a_lease_that_decode_did_not_use_is_released(
    cluster: FakeCluster, http: httpx.AsyncClient
) -> None:
    cluster.decode.pause_at = 0
    task = asyncio.create_task(post(http))
    await cluster.decode.until(lambda: bool(cluster.decode.seen))
    await cluster.router.until(lambda: bool(cluster.router.first_tokens))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await cluster.prefill.until(lambda: bool(cluster.prefill.released))
    await cluster.decode.until(lambda: bool(cluster.decode.aborted))
