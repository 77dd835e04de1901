"""The limits of fields hold on every route that takes a body for a model, and in the lines of batches."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from llmserve.apiserver.auth.permissions import GENERATING_PATHS
from tests.integration.apiserver.manifests import manifest_of

USER = [{"role": "user", "content": "hello"}]
SMALL = {"choices": 2, "prompts": 3, "stop": 1, "max_tokens": 8, "cache_salt_characters": 4, "grammar_kib": 1}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hello"},
    "/v1/chat/completions": {"messages": USER},
    "/v1/chat/completions/batch": {"messages": [USER]},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": USER, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": USER},
    "/tokenize": {"prompt": "hello"},
    "/detokenize": {"tokens": [3]},
    "/generative_scoring": {"query": "a", "items": ["a"], "label_token_ids": [5, 6]},
    "/invocations": {"messages": USER},
    **{path: {"prompt": "hello"} for path in GENERATING_PATHS},
}
BEYOND: tuple[dict[str, Any], ...] = (
    {"n": 3},
    {"best_of": 100_000_000},
    {"max_tokens": 9},
    {"stop": ["a", "b"]},
    {"cache_salt": "salts"},
)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return manifest_of(
        batches={"location": str(tmp_path_factory.mktemp("batches"))},
        security={"limits": SMALL, "allowed_media_hosts": ["media.example.com"]},
    )


async def test_fields_beyond_the_limits_are_refused_on_every_route(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    for path, body in BODIES.items():
        for wrong in BEYOND:
            (field,) = wrong
            answer = await http.post(path, json={"model": "tiny", **body, **wrong})
            said = answer.json()["error"]
            assert answer.status_code == 400, (path, wrong, said)
            assert said["message"].startswith(f"{field} may "), (path, wrong, said)
            assert "security.limits." in said["message"]
            assert said.get("param", field) == field
    assert cluster.router.admits == []


async def test_no_url_of_a_request_is_fetched_from_a_host_that_is_not_allowed(
    http: httpx.AsyncClient,
) -> None:
    asked: list[str] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readline()).decode())
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/image.png"
        openai_s = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "input_image", "image_url": url},
        ]
        anthropic_s = [{"type": "image", "source": {"type": "url", "url": url}}]
        chat, message = [{"role": "user", "content": openai_s}], [{"role": "user", "content": anthropic_s}]
        bodies: dict[str, dict[str, Any]] = {
            "/v1/chat/completions": {"messages": chat},
            "/v1/chat/completions/batch": {"messages": [chat]},
            "/v1/responses": {"input": chat},
            "/v1/messages": {"messages": message, "max_tokens": 2},
            "/v1/messages/count_tokens": {"messages": message},
            "/tokenize": {"messages": chat},
            "/invocations": {"messages": chat},
            "/v1/chat": {"messages": chat},
        }
        for path, body in bodies.items():
            answer = await http.post(path, json={"model": "tiny", **body})
            assert answer.status_code == 400, path
            assert "security.allowed_media_hosts" in answer.json()["error"]["message"], path
    assert asked == []


@pytest.mark.parametrize("salt", ["a", "p\u00e4ss \U0001f600", "'; --", "{}\t\n"])
async def test_a_client_s_salt_never_reaches_an_engine(
    cluster: Any, http: httpx.AsyncClient, salt: str
) -> None:
    """vLLM 2026-105754: a salt ended an engine. Engines get a digest in hex, whatever the client sent."""
    body = {"model": "tiny", "messages": USER, "max_tokens": 2, "cache_salt": salt[:4]}
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    legs = [*cluster.prefill.seen.values(), *cluster.decode.seen.values()]
    assert len(legs) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", leg.cache_salt) for leg in legs)


async def test_many_prompts_are_counted_with_their_choices(cluster: Any, http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 1}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    refused = await http.post("/v1/completions", json={**body, "n": 2})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")


async def test_a_line_of_a_batch_has_the_same_limits(cluster: Any, http: httpx.AsyncClient) -> None:
    request = {"model": "tiny", "messages": USER, "n": 3}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": request}
    upload = await http.post(
        "/v1/files", files={"file": ("a.jsonl", json.dumps(line).encode())}, data={"purpose": "batch"}
    )
    wanted = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = (await http.post("/v1/batches", json={**wanted, "input_file_id": upload.json()["id"]})).json()
    async with asyncio.timeout(20):
        while batch["status"] not in ("completed", "failed"):
            await asyncio.sleep(0.05)
            batch = (await http.get(f"/v1/batches/{batch['id']}")).json()
    errors = (await http.get(f"/v1/files/{batch['error_file_id']}/content")).text
    assert "security.limits.choices" in errors


async def test_a_large_schema_is_refused_before_it_is_compiled(cluster: Any, http: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {f"property-{index}": {} for index in range(100)}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = {"model": "tiny", "messages": USER, "max_tokens": 2, "response_format": wanted}
    refused = await http.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert "larger than 1 KiB (security.limits.grammar_kib)" in refused.json()["error"]["message"]
