"""API keys, tenants and scopes."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
from fastapi import FastAPI

from llmserve.apiserver.auth.caller import AccessScope
from llmserve.apiserver.auth.permissions import NEEDS, POOLING_PATHS
from llmserve.apiserver.auth.stores.file import FileKeys
from llmserve.apiserver.auth.stores.stored_key import make_key
from llmserve.core.errors import Overloaded
from llmserve.core.request import Outcome
from llmserve.scheduler.key_limits import KeyLimits
from tests.integration.apiserver.manifests import manifest_of

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="session")
def manifest(key_file: Path) -> dict[str, Any]:
    keys = [
        {"tenant": "red", "key": "red-key"},
        {"tenant": "blue", "key": "blue-key"},
        {"tenant": "red", "key": "red-watcher", "scopes": ["read"]},
        {"tenant": "red", "key": "red-app", "scopes": ["inference"]},
        {"tenant": "red", "key": "red-other-model", "models": ["large"]},
        {"tenant": "ops", "key": "ops-key", "admin": True},
    ]
    return manifest_of(
        api={"tokenizer_info": True},
        security={
            "api_keys": keys,
            "keys": {"file": str(key_file)},
            "public": {"metrics": False},
        },
    )


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer no"}, {"authorization": "Basic red-key"}])
async def test_without_a_known_key_it_is_401(
    cluster: Any, http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    for path in ("/v1/models", "/docs", "/tokenize", "/health/../v1/models"):
        response = await http.get(path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == 401


async def test_health_is_open_and_metrics_can_be_closed(cluster: Any, http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).status_code == 200
    keys = (None, "red-app", "red-watcher", "ops-key")
    answers = [await http.get("/metrics", headers={"x-api-key": key} if key else {}) for key in keys]
    assert [answer.status_code for answer in answers] == [401, 403, 200, 200]


async def test_every_route_of_the_application_is_in_the_table_of_scopes(cluster: Any) -> None:
    from llmserve.apiserver.batches.routes import add_batches
    from llmserve.apiserver.console.assets import CONSOLE_PATHS

    of_batches = FastAPI(openapi_url=None)
    add_batches(of_batches, MagicMock(), lambda path: True)
    batches = {route.path for route in of_batches.routes}  # type: ignore[attr-defined]
    assert cluster.apiserver.models.first.paths - CONSOLE_PATHS | POOLING_PATHS | batches == NEEDS.keys()


@pytest.mark.parametrize("key", ["red-key", "red-watcher", "red-app"])
async def test_only_an_admin_changes_the_cluster(
    cluster: Any, http: httpx.AsyncClient, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also from loopback, where this test is. Each try is in the audit log."""
    caplog.set_level("INFO", logger="llmserve.rpc.audit")
    paths = cluster.apiserver.models.first.paths
    changing = [path for path in paths if NEEDS.get(path) == frozenset({AccessScope.ADMIN})]
    assert len(changing) == sum(scopes == {AccessScope.ADMIN} for scopes in NEEDS.values())
    for path in changing:
        for method in ("GET", "POST", "DELETE"):
            where = path.replace("{name:path}", "sql").replace("{worker}", "decode-0")
            refused = await http.request(method, where, headers={"x-api-key": key}, json={})
            assert refused.status_code == 403, (method, path)
            assert refused.json()["error"]["type"] == "PermissionDeniedError"
            line = json.loads(caplog.messages[-1])
            assert (line["tenant"], line["what"], line["result"]) == ("red", f"{method} {where}", "403")
            assert line["key"].startswith("security.api_keys")
    assert not cluster.router.loads
    assert (await http.get("/admin/v1/adapters", headers={"x-api-key": "ops-key"})).status_code == 200


async def test_who_may_only_look_gets_no_answers_of_models(cluster: Any, http: httpx.AsyncClient) -> None:
    watcher, app = {"x-api-key": "red-watcher"}, {"x-api-key": "red-app"}
    assert (await http.post("/v1/chat/completions", json=CHAT, headers=watcher)).status_code == 403
    assert (await http.post("/v1/messages", json=CHAT, headers=watcher)).json()["type"] == "error"
    made = await http.post("/v1/chat/completions", json=CHAT, headers=app)
    explained = f"/v1/requests/{made.headers['x-request-id']}/explain"
    asked = [await http.get(explained, headers=one) for one in (watcher, app, {"x-api-key": "blue-key"})]
    assert [answer.status_code for answer in asked] == [200, 200, 404]


async def test_a_key_for_other_models_does_not_know_this_one(cluster: Any, http: httpx.AsyncClient) -> None:
    headers = {"x-api-key": "red-other-model"}
    assert (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 404
    assert (await http.get("/v1/models", headers=headers)).json()["data"] == []


async def test_the_key_is_the_tenant_and_tenants_do_not_share_kv(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    for headers in ({"authorization": "Bearer red-key"}, {"x-api-key": "blue-key"}):
        response = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert response.status_code == 200
    assert [admit.tenant for admit in cluster.router.admits] == ["red", "blue"]
    red, blue = cluster.prefill.seen.values()
    assert red.cache_salt != blue.cache_salt
    assert (red.tenant, blue.tenant) == ("red", "blue")


async def test_keys_come_and_go_while_it_runs_and_the_router_is_told_their_limits(
    cluster: Any, http: httpx.AsyncClient, key_file: Path
) -> None:
    store = FileKeys(key_file)
    made = make_key("green", ("inference",), time.time(), tokens_per_second=500.0, max_requests_in_flight=2)
    await store.add(made.stored)

    async def becomes(status: int) -> None:
        async with asyncio.timeout(10):
            answered = 0
            while answered != status:
                answer = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
                answered = answer.status_code

    headers = {"x-api-key": made.text}
    await becomes(200)
    (admit,) = cluster.router.admits
    limits = admit.key_limits
    assert admit.tenant == "green"
    assert KeyLimits(limits.key, None, limits.tokens_per_second, limits.max_requests_in_flight) == KeyLimits(
        made.stored.id, None, 500.0, 2
    )
    assert not limits.HasField("requests_per_second")
    assert await store.remove(made.stored.id)
    await becomes(401)


async def test_a_request_over_a_limit_of_its_key_is_told_when_to_come_back(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    over = Overloaded("the key has used up its 2 requests per second", retry_after_seconds=1.2)
    cluster.router.refuse_with = (Outcome.REJECTED, over)
    answer = await http.post("/v1/chat/completions", json=CHAT, headers={"x-api-key": "red-key"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert answer.json()["error"]["message"] == over.message
