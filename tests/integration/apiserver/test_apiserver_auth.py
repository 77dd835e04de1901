"""API keys and tenants."""

from typing import Any

import httpx
import pytest

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    keys = [{"tenant": "red", "key": "red-key"}, {"tenant": "blue", "key": "blue-key"}]
    return {
        "kind": "LLMServe",
        "models": {"primary": {"source": "hub:some/model"}},
        "security": {"api_keys": keys},
    }


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer no"}, {"authorization": "Basic red-key"}])
async def test_without_a_known_key_it_is_401(
    cluster: Any, http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    for path in ("/v1/models", "/docs", "/tokenize", "/health/../v1/models"):
        response = await http.get(path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == 401


async def test_health_and_metrics_are_open(cluster: Any, http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).status_code == 200
    assert (await http.get("/metrics")).status_code == 200


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
