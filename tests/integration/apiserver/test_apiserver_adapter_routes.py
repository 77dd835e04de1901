"""Adapters are loaded, kept near and unloaded over HTTP: by admins, in vLLM's, SGLang's and our own form."""

from typing import Any

import httpx
import pytest

from llmserve.core.adapters import NamedAdapter
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import AdapterDigest
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from tests.integration.apiserver.manifests import manifest_of

ONE, TWO = AdapterDigest("1" * 64), AdapterDigest("2" * 64)
SQL = NamedAdapter("sql", ONE, "tiny", "dir:/adapters/sql")
LOAD = {"lora_name": "new", "lora_path": "/adapters/new"}
OWN = "/admin/v1/adapters"
ALL = [
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/load_lora_adapter"),
    ("POST", "/unload_lora_adapter"),
    ("GET", OWN),
    ("POST", OWN),
    ("DELETE", f"{OWN}/sql"),
    ("POST", f"{OWN}/sql/prefetch"),
    ("POST", f"{OWN}/sql/pin"),
    ("DELETE", f"{OWN}/sql/pin"),
]


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    keys = [{"tenant": "ops", "key": "ops-key", "admin": True}, {"tenant": "red", "key": "red-key"}]
    return manifest_of(security={"api_keys": keys})


@pytest.fixture
async def http(cluster: Any, http: httpx.AsyncClient) -> httpx.AsyncClient:
    http.headers["authorization"] = "Bearer ops-key"
    await cluster.named(SQL)
    cluster.router.sources["dir:/adapters/new"] = TWO
    return http


async def names(http: httpx.AsyncClient) -> list[str]:
    return [card["id"] for card in (await http.get("/v1/models")).json()["data"]]


async def test_only_admins_may(cluster: Any, http: httpx.AsyncClient) -> None:
    http.headers["authorization"] = "Bearer red-key"
    for method, path in ALL:
        answer = await http.request(method, path, json={"lora_name": "sql", "lora_path": "/a"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "PermissionDeniedError")
    router = cluster.router
    assert [*router.loads, *router.unloads, *router.keeps] == []


async def test_vllm_s_form(cluster: Any, http: httpx.AsyncClient) -> None:
    loaded = await http.post("/v1/load_lora_adapter", json=LOAD)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'new' added successfully.")
    assert await names(http) == ["tiny", "sql", "new"]
    again = await http.post("/v1/load_lora_adapter", json=LOAD)
    assert (again.status_code, again.json()["error"]["param"]) == (400, "lora_name")
    inplace = await http.post("/v1/load_lora_adapter", json={**LOAD, "load_inplace": True})
    assert inplace.status_code == 200
    gone = await http.post("/v1/unload_lora_adapter", json={"lora_name": "new", "lora_int_id": 1})
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'new' removed successfully.")
    assert await names(http) == ["tiny", "sql"]
    unknown = await http.post("/v1/unload_lora_adapter", json={"lora_name": "new"})
    assert unknown.status_code == 404


async def test_sglang_s_form(cluster: Any, http: httpx.AsyncClient) -> None:
    loaded = await http.post("/load_lora_adapter", json={**LOAD, "pinned": True})
    assert loaded.json() == {
        "success": True,
        "error_message": None,
        "loaded_adapters": {"sql": "dir:/adapters/sql", "new": "dir:/adapters/new"},
    }
    assert cluster.router.loads[0].pin
    gone = await http.post("/unload_lora_adapter", json={"lora_name": "new"})
    assert gone.json()["loaded_adapters"] == {"sql": "dir:/adapters/sql"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"lora_path": "/a"}, "lora_name"),
    ({"lora_name": "", "lora_path": "/a"}, "lora_name"),
    ({"lora_name": 7, "lora_path": "/a"}, "lora_name"),
    ({"lora_name": "a"}, "lora_path"),
    ({"lora_name": "a", "lora_path": ["/a"]}, "lora_path"),
    ({"lora_name": "a", "lora_path": "a"}, "lora_path"),
    ({"lora_name": "a", "lora_path": "ftp://a"}, "lora_path"),
    ({**LOAD, "load_inplace": "perhaps"}, "load_inplace"),
    ({**LOAD, "is_3d_lora_weight": True}, "is_3d_lora_weight"),
    ({**LOAD, "added_tokens_config": {"a": 1}}, "added_tokens_config"),
]


async def test_a_wrong_load_is_400_with_the_field(cluster: Any, http: httpx.AsyncClient) -> None:
    for body, field in WRONG:
        for path in ("/v1/load_lora_adapter", "/load_lora_adapter"):
            answer = await http.post(path, json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == field
    assert not cluster.router.loads


async def test_what_the_router_refuses_is_said(cluster: Any, http: httpx.AsyncClient) -> None:
    why = "adapter source dir:/etc is not below one of `lora.allowed_sources`: none yet"
    cluster.router.sources["dir:/etc"] = InvalidRequest(why)
    for path, body in (
        ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "/etc"}),
        (OWN, {"name": "a", "source": "dir:/etc"}),
    ):
        answer = await http.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, why)


async def test_our_own_form(cluster: Any, http: httpx.AsyncClient) -> None:
    loaded = await http.post(OWN, json={"name": "new", "source": "dir:/adapters/new", "prefetch": "device"})
    assert (loaded.status_code, loaded.json()["version"]) == (200, TWO)
    assert cluster.router.loads[0].prefetch == router_pb2.ADAPTER_TIER_DEVICE
    assert not cluster.router.loads[0].implicit
    listed = (await http.get(OWN)).json()["adapters"]
    assert [one["name"] for one in listed] == ["sql", "new"]
    assert listed[0] == {
        "name": "sql",
        "version": ONE,
        "state": "ready",
        "error": None,
        "model": "tiny",
        "source": "dir:/adapters/sql",
        "rank": None,
        "size_bytes": None,
        "pinned": False,
        "running_requests": 0,
        "workers": [
            {
                "worker": "decode-0",
                "tier": "disk",
                "running_requests": 0,
                "load_seconds": 0.5,
                "error": None,
            }
        ],
    }
    moved = await http.post(OWN, json={"name": "new", "source": "/adapters/new"})
    assert moved.status_code == 200
    gone = await http.delete(f"{OWN}/new", params={"wait": True})
    assert (gone.status_code, gone.json()["state"]) == (200, "draining")
    assert cluster.router.unloads[0].wait
    assert await names(http) == ["tiny", "sql"]


async def test_prefetch_and_pin(cluster: Any, http: httpx.AsyncClient) -> None:
    await cluster.named(NamedAdapter("org/sql", ONE, "tiny"))
    at = f"{OWN}/org/sql"
    assert (await http.post(f"{at}/prefetch", json={"tier": "device", "wait": False})).status_code == 200
    assert (await http.post(f"{at}/prefetch")).status_code == 200
    assert (await http.post(f"{at}/pin")).status_code == 200
    assert (await http.delete(f"{at}/pin")).status_code == 200
    asked = [
        (one.name, one.tier, one.pin if one.HasField("pin") else None, one.wait)
        for one in cluster.router.keeps
    ]
    dram, device = router_pb2.ADAPTER_TIER_DRAM, router_pb2.ADAPTER_TIER_DEVICE
    unspecified = router_pb2.ADAPTER_TIER_UNSPECIFIED
    assert asked == [
        ("org/sql", device, None, False),
        ("org/sql", dram, None, True),
        ("org/sql", unspecified, True, False),
        ("org/sql", unspecified, False, False),
    ]


async def test_a_name_that_is_not_there(cluster: Any, http: httpx.AsyncClient) -> None:
    for path in ("/none", "/none/pin"):
        answer = await http.delete(f"{OWN}{path}")
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NotFoundError")


async def test_a_wrong_prefetch_is_400(cluster: Any, http: httpx.AsyncClient) -> None:
    for field, value in {"tier": "tape", "wait": "perhaps", "other": 1}.items():
        answer = await http.post(f"{OWN}/sql/prefetch", json={field: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


async def test_without_a_router_it_is_503(cluster: Any, http: httpx.AsyncClient) -> None:
    await cluster.router.crash()
    answer = await http.post("/v1/load_lora_adapter", json=LOAD)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "ServiceUnavailableError")
    assert answer.headers["retry-after"] == "1"


async def test_a_router_that_does_not_tell_is_503(
    cluster: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmserve.apiserver.adapters.manager._HEAR_SECONDS", 0.01)
    monkeypatch.setattr(cluster.apiserver._adapters, "meaning", lambda name: None)
    answer = await http.post("/v1/load_lora_adapter", json=LOAD)
    assert answer.status_code == 503
    assert "has not told this apiserver" in answer.json()["error"]["message"]
