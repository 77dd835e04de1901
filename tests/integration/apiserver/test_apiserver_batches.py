"""`/v1/files` and `/v1/batches` of an apiserver whose workers are fakes, by OpenAI's client."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types import Batch

from tests.integration.apiserver.manifests import manifest_of

ENDED = ("completed", "failed", "expired", "cancelled")
CHAT: Any = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return manifest_of(
        batches={"location": str(tmp_path_factory.mktemp("batches")), "max_file_mb": 1, "max_lines": 50},
        security={
            "api_keys": [
                {"tenant": "red", "key": "red-key", "adapters": [], "max_priority": 2},
                {"tenant": "blue", "key": "blue-key"},
            ]
        },
    )


def _client(cluster: Any, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key=key, max_retries=0)


@pytest_asyncio.fixture
async def red(cluster: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with _client(cluster, "red-key") as made:
        yield made


@pytest_asyncio.fixture
async def blue(cluster: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with _client(cluster, "blue-key") as made:
        yield made


def line(custom_id: str, url: str = "/v1/chat/completions", **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": CHAT | body})


async def submit(client: openai.AsyncOpenAI, *lines: str, **fields: Any) -> Batch:
    file = await client.files.create(file=("lines.jsonl", "\n".join(lines).encode()), purpose="batch")
    given = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **fields}
    return await client.batches.create(input_file_id=file.id, **given)


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    async with asyncio.timeout(30):
        while (batch := await client.batches.retrieve(batch.id)).status not in ENDED:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return batch


async def rows(client: openai.AsyncOpenAI, file_id: str | None) -> dict[str | None, Any]:
    assert file_id is not None
    content = await client.files.content(file_id)
    return {row["custom_id"]: row for row in map(json.loads, content.text.splitlines())}


async def test_lines_may_what_their_key_may(red: openai.AsyncOpenAI) -> None:
    batch = await ended(red, await submit(red, line("within", priority=-2), line("beyond", priority=-3)))
    assert list(await rows(red, batch.output_file_id)) == ["within"]
    response = (await rows(red, batch.error_file_id))["beyond"]["response"]
    assert (response["status_code"], response["body"]["error"]["type"]) == (403, "PermissionDeniedError")


async def test_a_batch_with_good_and_bad_lines(cluster: Any, red: openai.AsyncOpenAI) -> None:
    batch = await submit(
        red,
        line("a"),
        "{no json",
        line("b", max_tokens=2),
        line("wrong model", model="other"),
        line("a"),
        line("stream", stream=True),
        line("wrong url", url="/v1/completions"),
        metadata={"for": "me"},
    )
    assert (batch.status, batch.metadata, batch.completion_window) == ("validating", {"for": "me"}, "24h")
    batch = await ended(red, batch)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 7, "completed": 2, "failed": 5}
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (10, 5)
    good = await rows(red, batch.output_file_id)
    assert good.keys() == {"a", "b"}
    assert good["a"]["error"] is None
    assert good["a"]["response"]["status_code"] == 200
    answer = good["a"]["response"]["body"]
    assert answer["choices"][0]["message"]["content"] == "uic"
    bad = await rows(red, batch.error_file_id)
    assert bad["wrong model"]["response"]["status_code"] == 404
    errors = {name: row["error"] for name, row in bad.items() if row["error"] is not None}
    assert {name: (one["line"], one["code"]) for name, one in errors.items()} == {
        None: (2, "invalid_json_line"),
        "a": (5, "duplicate_custom_id"),
        "stream": (6, "invalid_request"),
        "wrong url": (7, "invalid_request"),
    }
    assert "that of line 1" in errors["a"]["message"]
    assert cluster.count("apiserver_batch_lines_total", result="completed") == 2


async def test_lines_are_a_background_flow_of_their_tenant(cluster: Any, red: openai.AsyncOpenAI) -> None:
    batch = await ended(red, await submit(red, line("a")))
    (admit,) = cluster.router.admits
    assert admit.tenant == "red (batches)"
    (row,) = (await rows(red, batch.output_file_id)).values()
    name = row["response"]["request_id"]
    record = await red.get(f"/requests/{name}/explain", cast_to=httpx.Response)
    told = record.json()
    assert (told["request_id"], told["tenant"], told["path"]) == (name, "red", "/v1/chat/completions")
    times = (
        *("time_to_first_token_seconds_count", "apiserver_request_seconds_count"),
        "inter_token_latency_seconds_count",
    )
    assert [cluster.count(name) for name in times] == [0, 0, 0]  # nobody waits for a line
    await red.chat.completions.create(**CHAT)
    await cluster.settled()
    assert [cluster.count(name) for name in times] == [1, 1, 1]
    assert cluster.router.admits[-1].tenant == "red"
    assert cluster.router.admits[-1].block_hashes == admit.block_hashes  # they share KV


async def test_a_tenant_sees_only_its_own(red: openai.AsyncOpenAI, blue: openai.AsyncOpenAI) -> None:
    batch = await ended(red, await submit(red, line("a")))
    assert batch.id in {one.id async for one in red.batches.list()}
    assert [one.id async for one in blue.batches.list()] == []
    assert [one.id async for one in blue.files.list()] == []
    for call in (
        blue.batches.retrieve(batch.id),
        blue.batches.cancel(batch.id),
        blue.files.retrieve(batch.input_file_id),
        blue.files.content(batch.input_file_id),
        blue.files.delete(batch.input_file_id),
        blue.batches.create(
            input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        ),
    ):
        with pytest.raises(openai.NotFoundError):
            await call
    async with httpx.AsyncClient(base_url=str(red.base_url)) as stranger:
        assert (await stranger.get("/files")).status_code == 401
        assert (await stranger.get("/batches")).status_code == 401


async def test_files_come_and_go(red: openai.AsyncOpenAI) -> None:
    made = await red.files.create(
        file=("ä b.jsonl", b"x" * 5),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (made.bytes, made.filename, made.purpose, made.status) == (5, "ä b.jsonl", "batch", "processed")
    assert made.expires_at == made.created_at + 3600
    assert await red.files.retrieve(made.id) == made
    assert (await red.files.content(made.id)).content == b"xxxxx"
    second = await red.files.create(file=b"y", purpose="batch")
    listed = [one.id async for one in red.files.list(purpose="batch", limit=1)]  # in pages of one
    assert listed[:2] == [second.id, made.id]
    assert [one.id async for one in red.files.list(order="asc")][-1] == second.id
    assert (await red.files.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await red.files.retrieve(made.id)


async def test_uploads_that_are_refused(red: openai.AsyncOpenAI) -> None:
    late = {"anchor": "created_at", "seconds": 5}
    for fields, words in (
        ({"purpose": "fine-tune"}, "purpose must be 'batch'"),
        ({"purpose": "batch", "file": b""}, "empty"),
        ({"purpose": "batch", "expires_after": late}, "expires_after"),
    ):
        given: Any = {"file": b"x", **fields}
        with pytest.raises(openai.BadRequestError, match=words):
            await red.files.create(**given)


async def test_an_upload_over_the_limit(cluster: Any, red: openai.AsyncOpenAI) -> None:
    for size in (2**20 + 1, 3 * 2**20):
        with pytest.raises(openai.APIStatusError) as raised:
            await red.files.create(file=b"x" * size, purpose="batch")
        assert raised.value.status_code == 413
    answer = await red.files.create(file=b"x" * 2**20, purpose="batch")  # far over that of other bodies
    assert answer.bytes == 2**20

    async def chunks() -> AsyncIterator[bytes]:
        head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n'
        yield head
        for _ in range(40):
            yield b"x" * 100_000

    headers = {"authorization": "Bearer red-key", "content-type": "multipart/form-data; boundary=b"}
    async with httpx.AsyncClient(base_url=cluster.url) as client:
        told = await client.post("/v1/files", content=chunks(), headers=headers)
        assert told.status_code == 413
        none = await client.post("/v1/files", headers=headers, content=b"--b--\r\n")
        assert none.status_code == 400
        assert "file" in none.json()["error"]["message"]


async def test_batches_that_are_refused(red: openai.AsyncOpenAI) -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"endpoint": "/v1/moderations"}, "endpoint must be one of /v1/chat/completions, "),
        ({"endpoint": "/v1/tokenize"}, "endpoint must be one of"),
        ({"completion_window": "soon"}, "completion_window must be"),
        ({"completion_window": "31d"}, "completion_window must be"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "16 pairs"),
        ({"metadata": {"a": "x" * 513}}, "512"),
    ]
    for fields, words in refusals:
        with pytest.raises(openai.BadRequestError, match=words):
            await submit(red, line("a"), **fields)


async def test_a_file_of_which_no_line_is_good_fails_as_a_whole(red: openai.AsyncOpenAI) -> None:
    batch = await ended(red, await submit(red, "nonsense", "[]", line("x", url="/v1/embeddings")))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(one.line, one.code) for one in batch.errors.data or []] == [
        (1, "invalid_json_line"),
        (2, "invalid_request"),
        (3, "invalid_request"),
    ]
    many = await ended(red, await submit(red, *(line(str(n)) for n in range(51))))
    assert many.errors is not None
    assert [one.code for one in many.errors.data or []] == ["too_many_requests"]
    assert (many.output_file_id, many.error_file_id) == (None, None)


async def test_a_cancelled_batch_keeps_what_is_done(cluster: Any, red: openai.AsyncOpenAI) -> None:
    done = await ended(red, await submit(red, line("a")))
    with pytest.raises(openai.BadRequestError, match="is completed"):
        await red.batches.cancel(done.id)
    cluster.decode.pause_at = 0
    batch = await submit(red, *(line(str(n)) for n in range(3)))
    await cluster.decode.until(lambda: len(cluster.decode.running) == 3)
    assert (await red.batches.cancel(batch.id)).status == "cancelling"
    batch = await ended(red, batch)
    assert batch.status == "cancelled"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 0, "failed": 0}
    await cluster.settled()
    assert len(cluster.decode.aborted) == 3


async def test_a_batch_expires(cluster: Any, red: openai.AsyncOpenAI) -> None:
    cluster.decode.pause_at = 0
    batch = await ended(red, await submit(red, line("a"), completion_window="1s"))
    assert batch.status == "expired"
    (row,) = (await rows(red, batch.error_file_id)).values()
    assert row["error"]["code"] == "batch_expired"
    assert batch.output_file_id is None
