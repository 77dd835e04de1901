"""Answers of /v1/responses that are kept: by two apiservers that share Redis, and by one in its memory."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry

from llmserve.config.schema import Manifest
from llmserve.core.errors import InvalidRequest
from llmserve.core.request import Outcome
from llmserve.rpc.leader import RouterAddresses
from tests.integration.apiserver.conftest import MODEL, FakeCluster
from tests.integration.apiserver.test_apiserver_api import text_after
from tests.support.valkey import Valkey, valkey

__all__ = ["valkey"]  # a fixture

KEYS = [{"tenant": "red", "key": "red-key"}, {"tenant": "blue", "key": "blue-key"}]
KEPT = {"api": {"response_store": {"enabled": True}}, "security": {"api_keys": KEYS}}
_names = itertools.count()


class Front:
    """Clients of one apiserver, by tenant."""

    def __init__(self, url: str) -> None:
        self.red, self.blue = (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key["key"], max_retries=0, timeout=30.0)
            for key in KEYS
        )
        self.http = httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer red-key"}, timeout=30.0)

    async def aclose(self) -> None:
        for client in (self.red, self.blue):
            await client.close()
        await self.http.aclose()


class Two:
    """a and b are two apiservers, or in memory twice the same."""

    def __init__(self, cluster: FakeCluster, a: Front, b: Front) -> None:
        self.cluster, self.a, self.b = cluster, a, b


@pytest.fixture(params=["memory", "redis"])
async def two(
    request: pytest.FixtureRequest, tiny_model: Path, manifest: dict[str, Any]
) -> AsyncIterator[Two]:
    written = {**manifest, **KEPT, "metadata": {"name": f"kept-{next(_names)}"}}
    if request.param == "redis":
        server: Valkey = request.getfixturevalue("valkey")
        written["state"] = {"backend": "redis", "redis": {"url": server.url}}
    cluster = FakeCluster(tiny_model)
    others: list[Any] = []
    try:
        await cluster.start(written)
        url = cluster.url
        if request.param == "redis":
            others.append(_second(cluster, tiny_model, written))
            url = f"http://127.0.0.1:{await others[0].start()}"
            await cluster.router.until(lambda: len(cluster.router.hellos) == 2)
        fronts = [Front(cluster.url), Front(url)]
        yield Two(cluster, *fronts)
        for front in fronts:
            await front.aclose()
    finally:
        cluster.decode.go.set()
        for one in others:
            await one.aclose(drain_seconds=0)
        await cluster.aclose()


def _second(cluster: FakeCluster, model: Path, manifest: dict[str, Any]) -> Any:
    from llmserve.apiserver.apiserver import Apiserver
    from llmserve.apiserver.options import ApiserverOptions, ModelDirectory

    options = ApiserverOptions(
        name="apiserver-1",
        http="127.0.0.1:0",
        routers=RouterAddresses((cluster.router.address,)),
        models=(ModelDirectory(MODEL, model),),
    )
    return Apiserver(options, Manifest.model_validate(manifest), CollectorRegistry())


async def _ended(client: openai.AsyncOpenAI, response_id: str) -> Any:
    async with asyncio.timeout(30):
        while True:
            found = await client.responses.retrieve(response_id)
            if found.status not in ("queued", "in_progress"):
                return found


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_an_answer_is_fetched_and_continued_at_another_apiserver(two: Two, stream: bool) -> None:
    options: dict[str, Any] = {"model": MODEL, "max_output_tokens": 4}
    if stream:
        events = [
            event async for event in await two.a.red.responses.create(**options, input="abc", stream=True)
        ]
        first = events[-1].response
    else:
        first = await two.a.red.responses.create(**options, input="abc")
    said = text_after(two.cluster, 3, 4)
    assert (await two.b.red.responses.retrieve(first.id)).output_text == said
    second = await two.b.red.responses.create(**options, input="def", previous_response_id=first.id)
    await two.a.red.responses.create(**options, input="g", previous_response_id=second.id)
    *_, prompt = two.cluster.prefill.seen.values()
    body = {"model": MODEL, "tokens": list(prompt.prompt_token_ids)}
    heard = (await two.a.http.post("/detokenize", json=body)).json()["prompt"]
    assert heard.replace("</s>", "") == f"abc{said}def{second.output_text}g"


async def test_what_is_not_to_be_stored_is_not(two: Two) -> None:
    answer = await two.a.red.responses.create(model=MODEL, input="abc", max_output_tokens=2, store=False)
    with pytest.raises(openai.NotFoundError):
        await two.a.red.responses.retrieve(answer.id)


async def test_no_tenant_reads_continues_or_cancels_another_s(two: Two) -> None:
    two.cluster.decode.pause_at = 1
    begun = await two.a.red.responses.create(
        model=MODEL, input="abc", max_output_tokens=8, background=True, extra_body={"request_id": "resp_mine"}
    )
    for front in (two.a, two.b):
        with pytest.raises(openai.NotFoundError):
            await front.blue.responses.retrieve(begun.id)
        with pytest.raises(openai.NotFoundError):
            await front.blue.responses.cancel(begun.id)
        with pytest.raises(openai.NotFoundError):
            await front.blue.responses.create(model=MODEL, input="x", previous_response_id=begun.id)
    two.cluster.decode.pause_at = None
    same_id = await two.a.blue.responses.create(
        model=MODEL, input="abcdef", max_output_tokens=2, extra_body={"request_id": "resp_mine"}
    )
    assert same_id.id == begun.id
    two.cluster.decode.go.set()
    assert (await _ended(two.b.red, begun.id)).output_text == text_after(two.cluster, 3, 8)
    assert (await two.b.blue.responses.retrieve(begun.id)).output_text == text_after(two.cluster, 6, 2)


async def test_the_background_is_polled_at_another_apiserver(two: Two) -> None:
    two.cluster.decode.pause_at = 1
    begun = await two.a.red.responses.create(model=MODEL, input="abc", max_output_tokens=8, background=True)
    assert begun.status == "queued"
    assert (await two.b.red.responses.retrieve(begun.id)).status == "queued"
    two.cluster.decode.go.set()
    ended = await _ended(two.b.red, begun.id)
    assert (ended.status, ended.output_text) == ("incomplete", text_after(two.cluster, 3, 8))


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_the_background_is_cancelled_from_another_apiserver(two: Two, stream: bool) -> None:
    cluster = two.cluster
    cluster.decode.pause_at = 2
    body = {"model": MODEL, "input": "abc", "max_output_tokens": 50, "background": True, "stream": stream}
    creating = asyncio.create_task(two.a.http.post("/v1/responses", json={**body, "request_id": "resp_x"}))
    await cluster.decode.until(lambda: len(cluster.decode.running) == 1)
    assert (await two.b.red.responses.cancel("resp_x")).status == "cancelled"
    await cluster.decode.until(lambda: len(cluster.decode.aborted) == 1)
    await cluster.router.until(lambda: bool(cluster.router.done))
    assert cluster.router.done[0][1] is Outcome.CANCELLED
    assert (await creating).status_code == 200  # a stream ends, and does not wait for ever
    assert (await two.a.red.responses.retrieve("resp_x")).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        await two.a.red.responses.cancel("resp_x")


async def test_a_failure_in_the_background_is_told(two: Two) -> None:
    two.cluster.prefill.fail_with = InvalidRequest("no")
    begun = await two.a.red.responses.create(model=MODEL, input="abc", background=True)
    assert (await _ended(two.b.red, begun.id)).status == "failed"


async def test_a_background_stream_is_followed_again_from_where_it_was(two: Two) -> None:
    options: dict[str, Any] = {"model": MODEL, "input": "abc", "max_output_tokens": 4}
    stream = await two.a.red.responses.create(**options, background=True, stream=True)
    events = [event async for event in stream]
    assert events[-1].type == "response.incomplete"
    response_id = events[-1].response.id
    again = await two.a.red.responses.retrieve(response_id, stream=True, starting_after=2)
    assert [e.sequence_number async for e in again] == [e.sequence_number for e in events[3:]]
    if two.b.http.base_url != two.a.http.base_url:  # the events stay where they were made
        refused = await two.b.http.get(f"/v1/responses/{response_id}", params={"stream": True})
        assert refused.status_code == 400
        assert "without stream" in refused.json()["error"]["message"]


async def test_a_stream_whose_response_is_kept_has_its_last_event(two: Two, monkeypatch: Any) -> None:
    """The lease of a response ends when it is kept: it is not renewed any more, and was not cancelled."""
    from llmserve.apiserver.responses import serving

    monkeypatch.setattr(serving, "_RENEW_SECONDS", 0.01)
    store = two.cluster.apiserver._store
    end = store.end

    async def slowly(*given: Any) -> bool:
        kept: bool = await end(*given)
        await asyncio.sleep(0.1)
        return kept

    monkeypatch.setattr(store, "end", slowly)
    options: dict[str, Any] = {"model": MODEL, "input": "abc", "max_output_tokens": 4}
    stream = await two.a.red.responses.create(**options, background=True, stream=True)
    assert [event.type async for event in stream][-1] == "response.incomplete"


async def test_a_background_stream_that_fails_ends_and_says_so(two: Two) -> None:
    decode = two.cluster.decode
    decode.pause_at, decode.fail_with = 0, InvalidRequest("no")
    stream = await two.a.red.responses.create(model=MODEL, input="abc", background=True, stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            decode.go.set()
    assert event.type == "response.failed"
    assert (await _ended(two.b.red, event.response.id)).status == "failed"


async def test_a_background_whose_apiserver_is_gone_has_failed(two: Two, monkeypatch: Any) -> None:
    from llmserve.apiserver.responses import serving

    monkeypatch.setattr(serving, "_LEASE_SECONDS", 0.1)
    monkeypatch.setattr(serving, "_RENEW_SECONDS", 60.0)
    two.cluster.decode.pause_at = 1
    begun = await two.a.red.responses.create(model=MODEL, input="abc", background=True)
    assert (await _ended(two.b.red, begun.id)).status == "failed"


async def test_a_store_that_is_away_loses_no_answer_and_refuses_what_needs_it(
    tiny_model: Path, manifest: dict[str, Any], tmp_path: Path
) -> None:
    server = Valkey(tmp_path)
    redis = {"backend": "redis", "redis": {"url": server.url}}
    cluster = FakeCluster(tiny_model)
    try:
        await cluster.start({**manifest, **KEPT, "state": redis})
        front = Front(cluster.url)
        body = {"model": MODEL, "input": "abc", "max_output_tokens": 2}
        assert (await front.http.post("/v1/responses", json=body)).status_code == 200
        for needs in ({"background": True}, {"previous_response_id": "resp_1"}):
            refused = await front.http.post("/v1/responses", json={**body, **needs})
            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        await cluster.settled()
        await front.aclose()
    finally:
        await cluster.aclose()


@pytest.mark.parametrize("needs", [{"background": True}, {"previous_response_id": "resp_1"}])
async def test_without_a_store_the_setting_is_named(
    cluster: Any, http: httpx.AsyncClient, needs: dict[str, Any]
) -> None:
    refused = await http.post("/v1/responses", json={"model": MODEL, "input": "abc", **needs})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert "api.response_store" in error["message"]
    assert error["param"] == next(iter(needs))


async def test_messages_shown_on_request_do_not_hinder_keeping(two: Two) -> None:
    body = {"model": MODEL, "input": "abc", "max_output_tokens": 2, "enable_response_messages": True}
    answer = (await two.a.http.post("/v1/responses", json=body)).json()
    assert answer["input_messages"]
    kept = (await two.b.http.get(f"/v1/responses/{answer['id']}")).json()
    assert json.dumps(kept["output"]) == json.dumps(answer["output"])
