"""Adapters by `lora_path`: found, loaded, or refused, but never answered by the model itself."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from llmserve.apiserver.auth.permissions import (
    CHOOSING_PATHS,
    GENERATING_PATHS,
    KEPT_PATHS,
    POOLING_PATHS,
)
from llmserve.core.adapters import NamedAdapter
from llmserve.core.errors import InvalidRequest, ModelNotFound, Unavailable
from llmserve.core.ids import AdapterDigest
from tests.integration.apiserver.manifests import manifest_of

ONE, TWO = AdapterDigest("1" * 64), AdapterDigest("2" * 64)
SQL = NamedAdapter("sql", ONE, "tiny", "dir:/adapters/sql")
LEGAL = NamedAdapter("org/legal", TWO, "tiny", "hub:org/legal")
MESSAGES = [{"role": "user", "content": "hello"}]
ROUTES: Mapping[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 3},
    "/v1/chat/completions/batch": {"messages": [MESSAGES], "max_tokens": 3},
    "/v1/completions": {"prompt": "hello", "max_tokens": 3},
    "/v1/responses": {"input": "hello", "max_output_tokens": 3},
    "/v1/messages": {"model": "tiny", "messages": MESSAGES, "max_tokens": 3},
    "/invocations": {"prompt": "hello", "max_tokens": 3},
}
COMPLETION = ROUTES["/v1/completions"]


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    keys = [
        {"tenant": "red", "key": "red-key"},
        {"tenant": "red", "key": "sql-key", "adapters": ["sql"]},
    ]
    return manifest_of(security={"api_keys": keys}, scheduling={"request_timeout_seconds": 30.0})


@pytest.fixture
async def http(cluster: Any, http: httpx.AsyncClient) -> httpx.AsyncClient:
    http.headers["authorization"] = "Bearer red-key"
    await cluster.named(SQL, LEGAL)
    return http


def digests(cluster: Any) -> set[str]:
    return {admit.adapter for admit in cluster.router.admits}


async def complete(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await http.post("/v1/completions", json={**COMPLETION, **fields})


@pytest.mark.parametrize("path", ROUTES)
async def test_a_name_digest_or_source_chooses_a_registered_adapter(
    cluster: Any, http: httpx.AsyncClient, path: str
) -> None:
    for wanted in ("sql", ONE, "dir:/adapters/sql", "/adapters/sql/"):
        answer = await http.post(path, json={**ROUTES[path], "lora_path": wanted})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "sql"
    assert digests(cluster) == {ONE}
    assert not cluster.router.loads


async def test_an_unknown_one_is_404_with_a_close_name(cluster: Any, http: httpx.AsyncClient) -> None:
    for path, body in ROUTES.items():
        answer = await http.post(path, json={**body, "lora_path": "org/legl"})
        assert answer.status_code == 404
        assert "'org/legl'; did you mean 'org/legal'?" in answer.json()["error"]["message"]
    assert not cluster.router.admits


async def test_another_type_is_400_with_the_field(cluster: Any, http: httpx.AsyncClient) -> None:
    for path, body in ROUTES.items():
        for wrong in (["sql"], {"name": "sql"}, 7, True, ""):
            answer = await http.post(path, json={**body, "lora_path": wrong})
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert "lora_path" in error["message"]
            assert path == "/v1/messages" or error["param"] == "lora_path"
    assert not cluster.router.admits


async def test_null_is_no_choice(cluster: Any, http: httpx.AsyncClient) -> None:
    assert (await complete(http, lora_path=None, model="tiny")).json()["model"] == "tiny"
    assert digests(cluster) == {""}


async def test_no_escape_hides_the_field(cluster: Any, http: httpx.AsyncClient) -> None:
    for index, letter in enumerate("lora_path"):
        for code in (f"\\u{ord(letter):04x}", f"\\u{ord(letter):04X}"):
            hidden = f"{'lora_path'[:index]}{code}{'lora_path'[index + 1 :]}"
            body = f'{{"model": "tiny", "prompt": "a", "max_tokens": 2, "{hidden}": "sql"}}'
            kind = {"content-type": "application/json"}
            answer = await http.post("/v1/completions", content=body, headers=kind)
            assert answer.json()["model"] == "sql"


async def test_model_and_lora_path_may_agree(cluster: Any, http: httpx.AsyncClient) -> None:
    for model in ("sql", ONE, "tiny", "", None):
        answer = await complete(http, model=model, lora_path="sql")
        assert answer.json()["model"] == "sql"


async def test_model_and_lora_path_in_conflict(cluster: Any, http: httpx.AsyncClient) -> None:
    for model, status in (("org/legal", 400), ("none", 404)):
        answer = await complete(http, model=model, lora_path="sql")
        assert answer.status_code == status
        assert model in answer.json()["error"]["message"]
    assert not cluster.router.admits


async def test_a_digest_is_served_even_when_its_name_moves_on(cluster: Any, http: httpx.AsyncClient) -> None:
    """The name moves while the request is on its way through vLLM's layer."""
    client, names = cluster.apiserver.models.first.client, cluster.apiserver._adapters
    process = client._process

    async def moving(*args: Any) -> Any:
        names.update([NamedAdapter("sql", TWO, "tiny")])
        return await process(*args)

    client._process = moving
    assert (await complete(http, lora_path=ONE)).status_code == 200
    assert digests(cluster) == {ONE}


@pytest.mark.parametrize("source", ["dir:/adapters/new", "/adapters/new", "s3://bucket/new", "hub:org/new"])
async def test_a_source_is_loaded_under_a_name_of_its_own(
    cluster: Any, http: httpx.AsyncClient, source: str
) -> None:
    whole = f"dir:{source}" if source.startswith("/") else source
    cluster.router.sources[whole] = TWO
    first = await complete(http, lora_path=source)
    assert first.status_code == 200, first.text
    (load,) = cluster.router.loads
    assert (load.source, load.name, load.implicit) == (whole, first.json()["model"], True)
    assert load.name.startswith("new-")
    assert digests(cluster) == {TWO}
    again = await complete(http, lora_path=source)
    assert again.json()["model"] == first.json()["model"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ModelNotFound("nothing is at dir:/adapters/x"), 404),
        (InvalidRequest("rank 64 is larger than lora.max_rank"), 400),
        (Unavailable("no router leads"), 503),
    ],
)
async def test_a_source_that_cannot_be_had_says_why_and_the_router_ends_its_name(
    cluster: Any, http: httpx.AsyncClient, error: Exception, status: int
) -> None:
    cluster.router.sources["dir:/adapters/x"] = error
    answer = await complete(http, lora_path="dir:/adapters/x", model="tiny")
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, str(error))
    assert ("retry-after" in answer.headers) is (status == 503)
    assert [load.implicit for load in cluster.router.loads] == [True]
    assert not cluster.router.unloads
    assert not cluster.router.admits


async def test_a_source_without_sense_is_400(cluster: Any, http: httpx.AsyncClient) -> None:
    for wrong in ("dir:adapters", "s3://", "hub:org", "/adapters/a\x00b"):
        answer = await complete(http, lora_path=wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_path")
    assert not cluster.router.loads


async def test_loading_takes_of_the_request_s_time(cluster: Any, http: httpx.AsyncClient) -> None:
    cluster.router.sources["dir:/adapters/new"] = TWO
    cluster.router.load_now.clear()
    asking = asyncio.create_task(complete(http, lora_path="dir:/adapters/new"))
    await cluster.router.until(lambda: bool(cluster.router.loads))
    waited: list[float] = []
    client = cluster.apiserver.models.first.client
    info = client._info

    def noted(request: Any) -> Any:
        made = info(request)
        waited.append(made.waited_seconds)
        return made

    client._info = noted
    await asyncio.sleep(0.05)
    cluster.router.load_now.set()
    assert (await asking).status_code == 200
    assert 0.05 <= waited[0] < 5


async def test_a_load_that_takes_too_long_is_504(cluster: Any, http: httpx.AsyncClient) -> None:
    manager = cluster.apiserver.models.first.manager
    manager._limit_seconds = lambda: 0.05
    cluster.router.load_now.clear()
    answer = await complete(http, lora_path="dir:/adapters/new")
    assert answer.status_code == 504
    cluster.router.load_now.set()
    assert not cluster.router.admits


async def test_a_limited_key_finds_only_its_own(cluster: Any, http: httpx.AsyncClient) -> None:
    http.headers["authorization"] = "Bearer sql-key"
    for wanted in ("org/legal", TWO, "hub:org/legal", "dir:/adapters/new"):
        assert (await complete(http, lora_path=wanted)).status_code == 404
    assert "did you mean" not in (await complete(http, lora_path="org/legl")).text
    assert not cluster.router.loads
    assert (await complete(http, lora_path="sql")).status_code == 200


async def test_anthropic_s_form_of_its_errors(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/messages", json={**ROUTES["/v1/messages"], "lora_path": "none"})
    assert answer.json()["error"]["type"] == "not_found_error"


async def test_a_stream_that_is_refused_has_the_status(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await complete(http, lora_path="none", stream=True)
    assert answer.status_code == 404


async def test_sagemaker_s_header_names_the_adapter(cluster: Any, http: httpx.AsyncClient) -> None:
    header = {"x-amzn-sagemaker-adapter-identifier": "org/legal"}
    for body, answered in (({}, "org/legal"), ({"model": "sql"}, "org/legal")):
        answer = await http.post("/invocations", json={**COMPLETION, **body}, headers=header)
        assert answer.json()["model"] == answered
    refused = await http.post("/invocations", json={**COMPLETION, "lora_path": "sql"}, headers=header)
    assert refused.status_code == 400
    for model in ("sql", "tiny"):
        answer = await http.post("/invocations", json={**COMPLETION, "model": model})
        assert answer.json()["model"] == model
    assert (await http.post("/invocations", json={**COMPLETION, "model": "none"})).status_code == 404


async def test_every_route_that_takes_a_model_looks_at_the_field(cluster: Any) -> None:
    app = cluster.apiserver.models.first.app
    posted = {route.path for route in app.routes if "POST" in getattr(route, "methods", ())}
    without_a_model = {"/v1/responses/{response_id}/cancel"}
    expected = CHOOSING_PATHS - POOLING_PATHS  # which a model has that generates nothing
    assert (posted & (KEPT_PATHS | GENERATING_PATHS)) - without_a_model == expected


async def test_what_becomes_of_it_is_explained(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await complete(http, lora_path="none")
    record = (await http.get(f"/v1/requests/{answer.headers['x-request-id']}/explain")).json()
    assert record["status"] == 404
    assert "there is no adapter 'none'" in record["error"]
