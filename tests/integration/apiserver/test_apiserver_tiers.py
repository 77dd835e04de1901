"""`service_tier` and `priority`: what a request asks for, within the rights of its key."""

import json
from typing import Any

import httpx
import openai
import pytest

from tests.integration.apiserver.manifests import manifest_of

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 6}
COMPLETION = {"model": "tiny", "prompt": "abc", "max_tokens": 6}
RESPONSE = {"model": "tiny", "input": "abc", "max_output_tokens": 6}
ROUTES = [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION), ("/v1/responses", RESPONSE)]
KEYS = {"all": None, "some": 3, "none": 0}


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    keys = [{"tenant": name, "key": f"{name}-key", "max_priority": most} for name, most in KEYS.items()]
    return manifest_of(security={"api_keys": keys})


async def post(http: httpx.AsyncClient, path: str, body: dict[str, Any], key: str = "all") -> httpx.Response:
    return await http.post(path, json=body, headers={"authorization": f"Bearer {key}-key"})


GRANTED: list[tuple[str, str, str, int]] = [
    ("all", "priority", "priority", -10),
    ("some", "priority", "priority", -3),
    ("none", "priority", "default", 0),
    ("none", "flex", "flex", 10),
    ("all", "auto", "default", 0),
    ("all", "default", "default", 0),
    ("all", "scale", "default", 0),
]


async def test_a_tier_is_a_priority_within_the_rights_of_the_key(
    cluster: Any, http: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for path, body in ROUTES:
        for key, tier, granted, priority in GRANTED:
            with subtests.test(path=path, body=body, key=key, tier=tier, granted=granted, priority=priority):
                cluster.router.admits.clear()
                answer = await post(http, path, {**body, "service_tier": tier}, key)
                assert answer.status_code == 200, answer.text
                assert answer.json()["service_tier"] == granted
                assert [admit.priority for admit in cluster.router.admits] == [priority]


@pytest.mark.parametrize(("path", "body"), ROUTES[:2], ids=["chat", "completions"])
async def test_the_tier_is_in_every_event_of_a_stream(
    cluster: Any, http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    """Also in those that vLLM does not make (http/text_events.py), and in none when no tier was named."""
    for asked, told in ({"service_tier": "priority"}, {"priority"}), ({}, {None}):
        answer = await post(http, path, {**body, "stream": True, **asked})
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert len(events) > 5
        assert {event.get("service_tier") for event in events} == told


async def test_openai_s_client_reads_it(cluster: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="some-key", max_retries=0) as client:
        create: Any = client.chat.completions.create
        answer = await create(**CHAT, service_tier="priority")
        stream = await create(**CHAT, service_tier="flex", stream=True)
        assert answer.service_tier == "priority"
        assert {chunk.service_tier async for chunk in stream} == {"flex"}


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=["chat", "completions", "responses"])
async def test_a_tier_that_is_none_and_one_beside_a_priority_are_refused(
    cluster: Any, http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await post(http, path, {**body, "service_tier": "gold"})
    assert (answer.status_code, "service_tier" in answer.text) == (400, True)
    answer = await post(http, path, {**body, "service_tier": "flex", "priority": -1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "service_tier")
    assert (await post(http, path, {**body, "service_tier": "auto", "priority": -1})).status_code == 200
    assert [admit.priority for admit in cluster.router.admits] == [-1]


async def test_a_priority_beyond_the_rights_of_the_key_is_403(cluster: Any, http: httpx.AsyncClient) -> None:
    for path, body in ROUTES:
        for key, priority, status in (
            ("some", -3, 200),
            ("some", -4, 403),
            ("none", -1, 403),
            ("none", 9, 200),
        ):
            answer = await post(http, path, {**body, "priority": priority}, key)
            assert answer.status_code == status, (path, key, priority, answer.text)
            assert status == 200 or "this key may set it" in answer.json()["error"]["message"]
    assert {admit.priority for admit in cluster.router.admits} == {-3, 9}


async def test_streams_are_refused_alike(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await post(http, "/v1/chat/completions", {**CHAT, "stream": True, "priority": -1}, "none")
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "PermissionDeniedError")
