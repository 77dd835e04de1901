"""Two models that share a tokenizer, behind one address: nothing of one reaches the other."""

import asyncio
import importlib
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from llmserve.apiserver import original_routes
from llmserve.apiserver.options import ModelDirectory
from llmserve.config.schema import Manifest
from llmserve.config.wanted_models import ServedName
from llmserve.core.adapters import NamedAdapter
from llmserve.core.errors import InvalidRequest, NotFound, StartFailed, Unavailable
from llmserve.core.ids import AdapterDigest
from llmserve.models.local import LocalModel
from llmserve.models.search import HubModel
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WORKER_ROLE_DECODE, WORKER_ROLE_PREFILL
from tests.integration.apiserver.conftest import ANSWER_SECONDS, TEXT, FakeCluster, FakeWorker

TINY, LARGE = "tiny", "large"
OTHER_TEXT = b"pack my box with five dozen liquor jugs. "
SQL = NamedAdapter("sql", AdapterDigest("1" * 64), TINY, "dir:/adapters/sql")
POEMS = NamedAdapter("poems", AdapterDigest("2" * 64), LARGE, "dir:/adapters/poems")
PROMPT = "a prompt that is longer than a block of 16 tokens"
COMPLETION: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 4}
USER = [{"role": "user", "content": PROMPT}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER, "max_tokens": 4},
    "/v1/chat/completions/batch": {"messages": [USER], "max_tokens": 4},
    "/v1/completions": COMPLETION,
    "/v1/responses": {"input": PROMPT, "max_output_tokens": 4},
    "/v1/messages": {"messages": USER, "max_tokens": 4},
    "/invocations": COMPLETION,
}


def two_models(**sections: Any) -> dict[str, Any]:
    models = [{"source": "hub:some/tiny"}, {"source": "hub:some/large", "tenants": ["blue", "root"]}]
    tenants, admins = ("red", "blue", "root", "green"), ("root", "green")
    keys = [{"tenant": name, "key": name, "admin": name in admins} for name in tenants]
    store = {"response_store": {"enabled": True}}
    return {
        "kind": "LLMServe",
        "models": models,
        "api": store,
        "security": {"api_keys": keys},
        "lora": {"allowed_sources": ["dir:/adapters"]},
        **sections,
    }


class TwoModels(FakeCluster):
    large_prefill: FakeWorker
    large_decode: FakeWorker

    def client(self, tenant: str = "blue") -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {tenant}"}
        return httpx.AsyncClient(base_url=self.url, timeout=ANSWER_SECONDS, headers=headers)


@pytest_asyncio.fixture
async def cluster(tiny_model: Path) -> AsyncIterator[TwoModels]:
    cluster = TwoModels(tiny_model, TINY, (LARGE,))
    try:
        await cluster.start(two_models())
        cluster.large_prefill = await cluster.add("large-prefill-0", WORKER_ROLE_PREFILL, LARGE)
        cluster.large_decode = await cluster.add("large-decode-0", WORKER_ROLE_DECODE, LARGE)
        for worker in (cluster.large_prefill, cluster.large_decode):
            worker.text, worker.block_size_tokens = OTHER_TEXT, 8
        await cluster.router.members(*cluster.router.workers)
        await cluster.named(SQL, POEMS)
        async with asyncio.timeout(ANSWER_SECONDS):
            while cluster.apiserver._router.kv_shape(LARGE).block_size_tokens != 8:
                await cluster.router.turn()
        yield cluster
    finally:
        await cluster.aclose()


@pytest_asyncio.fixture
async def http(cluster: TwoModels) -> AsyncIterator[httpx.AsyncClient]:
    async with cluster.client() as client:
        yield client


def counted(cluster: TwoModels) -> set[str]:
    """Returns the models that there are series of."""
    samples = (sample for family in cluster.registry.collect() for sample in family.samples)
    return {sample.labels["model"] for sample in samples if "model" in sample.labels}


def text_of(text: bytes, prompt: str = PROMPT, tokens: int = 4) -> str:
    return "".join(chr(text[(len(prompt) + index) % len(text)]) for index in range(tokens))


@pytest.mark.parametrize("path", BODIES)
async def test_each_request_runs_on_the_workers_of_its_model(
    cluster: TwoModels, http: httpx.AsyncClient, path: str
) -> None:
    for model, text, prefill in ((TINY, TEXT, cluster.prefill), (LARGE, OTHER_TEXT, cluster.large_prefill)):
        answer = await http.post(path, json={**BODIES[path], "model": model})
        assert answer.status_code == 200, answer.text
        assert json.dumps(text_of(text))[1:-1] in answer.text
        admit = cluster.router.admits[-1]
        assert (admit.model, admit.block_tokens) == (model, prefill.block_size_tokens)
        assert len(admit.block_hashes) == admit.prompt_tokens // prefill.block_size_tokens
        record = (await http.get(f"/v1/requests/{answer.headers['x-request-id']}/explain")).json()
        assert record["model"] == model
        await cluster.settled()
        assert cluster.count("apiserver_requests_total", model=model, outcome="completed") == 1
        assert cluster.count("apiserver_output_tokens_total", model=model) == 4
    assert (len(cluster.prefill.seen), len(cluster.large_prefill.seen)) == (1, 1)


async def test_equal_prompts_share_no_kv(cluster: TwoModels, http: httpx.AsyncClient) -> None:
    cluster.large_prefill.block_size_tokens = cluster.large_decode.block_size_tokens = 16
    await cluster.router.members(*cluster.router.workers)
    for model in (TINY, LARGE, SQL.name, POEMS.name):
        answer = await http.post("/v1/completions", json={**COMPLETION, "model": model})
        assert answer.json()["model"] == model
    assert len({tuple(admit.block_hashes) for admit in cluster.router.admits}) == 4
    workers = (cluster.prefill, cluster.large_prefill)
    salts = {request.cache_salt for worker in workers for request in worker.seen.values()}
    assert len(salts) == 4
    adapters = [{one.adapter for one in worker.seen.values()} for worker in workers]
    assert adapters == [{"", SQL.digest}, {"", POEMS.digest}]


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
async def test_routes_that_ask_no_engine_choose_as_well(http: httpx.AsyncClient, path: str) -> None:
    body = {"prompt": PROMPT} if path == "/tokenize" else {"messages": USER}
    for model in (TINY, LARGE, POEMS.name):
        assert (await http.post(path, json={**body, "model": model})).status_code == 200
    assert (await http.post(path, json={**body, "model": "none"})).status_code == 404
    assert (await http.post(path, json=body)).status_code == 400


async def test_every_model_and_adapter_is_listed_for_who_may_use_it(cluster: TwoModels) -> None:
    for tenant, names in (("blue", ["tiny", "sql", "large", "poems"]), ("red", ["tiny", "sql"])):
        async with cluster.client(tenant) as http:
            cards = (await http.get("/v1/models")).json()["data"]
            assert [card["id"] for card in cards] == names
            assert [card["parent"] for card in cards] == [None, "tiny", None, "large"][: len(names)]
            found = {name: (await http.get(f"/v1/models/{name}")).status_code for name in ("large", "poems")}
            assert set(found.values()) == {200 if tenant == "blue" else 404}


async def test_a_model_that_is_unknown_or_not_for_this_tenant(cluster: TwoModels) -> None:
    async with cluster.client("red") as http:
        for model in ("large", "poems", "tyni", 'x"'):
            answer = await http.post("/v1/completions", json={**COMPLETION, "model": model})
            message = f"The model `{model}` does not exist. There are: tiny, sql."
            assert answer.status_code == 404
            assert answer.json()["error"] == {
                "message": message,
                "type": "NotFoundError",
                "param": "model",
                "code": 404,
            }
        alone = await http.post("/v1/completions", json=COMPLETION)
        assert alone.json()["model"] == TINY, "the only one that it may use"
        anthropic = await http.post("/v1/messages", json={**BODIES["/v1/messages"], "model": "large"})
        assert anthropic.json()["error"]["type"] == "not_found_error"
    assert {admit.model for admit in cluster.router.admits} == {TINY}
    assert counted(cluster) == {TINY, LARGE}


async def test_no_model_where_there_are_several(cluster: TwoModels, http: httpx.AsyncClient) -> None:
    for model in ({}, {"model": ""}, {"model": None}):
        answer = await http.post("/v1/chat/completions", json={**BODIES["/v1/chat/completions"], **model})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
        assert "there are tiny, large, sql, poems" in answer.json()["error"]["message"]
    for wrong in (b"{", b"[]", b'{"model": 5}'):
        headers = {"content-type": "application/json"}
        answer = await http.post("/v1/chat/completions", content=wrong, headers=headers)
        assert answer.status_code == 400
    assert not cluster.router.admits


async def test_an_adapter_is_that_of_one_model(cluster: TwoModels, http: httpx.AsyncClient) -> None:
    right = await http.post("/v1/completions", json={**COMPLETION, "model": LARGE, "lora_path": "poems"})
    assert right.json()["model"] == POEMS.name
    for wanted in (POEMS.name, POEMS.digest, POEMS.source):
        body = {**COMPLETION, "model": POEMS.digest, "lora_path": wanted}
        assert (await http.post("/v1/completions", json=body)).json()["model"] == POEMS.name
    wrong = await http.post("/v1/completions", json={**COMPLETION, "model": TINY, "lora_path": "poems"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (404, "lora_path")
    header = {"x-amzn-sagemaker-adapter-identifier": "poems"}
    answer = await http.post("/invocations", json={**COMPLETION, "model": TINY}, headers=header)
    assert answer.json()["model"] == POEMS.name
    assert counted(cluster) == {TINY, LARGE}, "requests of adapters are those of their model"


async def test_a_load_says_of_which_model(cluster: TwoModels) -> None:
    async with cluster.client("root") as http:
        loads = {
            "/v1/load_lora_adapter": {"lora_name": "new", "lora_path": "dir:/adapters/any"},
            "/admin/v1/adapters": {"name": "newer", "source": "dir:/adapters/any"},
        }
        for path, body in loads.items():
            assert (await http.post(path, json=body)).status_code == 400
            assert (await http.post(path, json={**body, "model": "none"})).status_code == 404
            assert (await http.post(path, json={**body, "model": LARGE})).status_code == 200
        assert [load.model for load in cluster.router.loads] == [LARGE, LARGE]
        unloaded = await http.post("/v1/unload_lora_adapter", json={"lora_name": "new"})
        assert unloaded.status_code == 200
        assert [unload.model for unload in cluster.router.unloads] == [""], "the router knows whose it is"
    async with cluster.client() as http:
        body = {**COMPLETION, "model": LARGE, "lora_path": "dir:/adapters/any2"}
        cluster.router.sources["dir:/adapters/any2"] = AdapterDigest("3" * 64)
        assert (await http.post("/v1/completions", json=body)).status_code == 200
    assert cluster.router.loads[-1].model == LARGE


async def test_an_admin_of_another_tenant_loads_into_a_model_that_its_tenant_may_not_use(
    cluster: TwoModels,
) -> None:
    async with cluster.client("green") as http:
        body = {"name": "new", "source": "dir:/adapters/any", "model": LARGE}
        assert (await http.post("/admin/v1/adapters", json=body)).status_code == 200
        unknown = await http.post("/admin/v1/adapters", json={**body, "model": "none"})
        assert LARGE in unknown.json()["error"]["message"]
        answer = await http.post("/v1/completions", json={**COMPLETION, "model": LARGE})
        assert answer.status_code == 404
    assert [load.model for load in cluster.router.loads] == [LARGE]


async def test_a_source_has_a_name_for_each_model(cluster: TwoModels, http: httpx.AsyncClient) -> None:
    cluster.router.sources["dir:/adapters/any"] = AdapterDigest("3" * 64)
    for model in (TINY, LARGE):
        body = {**COMPLETION, "model": model, "lora_path": "dir:/adapters/any"}
        assert (await http.post("/v1/completions", json=body)).status_code == 200
    assert [load.model for load in cluster.router.loads] == [TINY, LARGE]
    assert len({load.name for load in cluster.router.loads}) == 2


async def test_a_response_goes_on_with_its_own_model_only(cluster: TwoModels) -> None:
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="blue", max_retries=0) as client:
        first = await client.responses.create(model=LARGE, input="abc", max_output_tokens=4)
        assert (await client.responses.retrieve(first.id)).output_text == first.output_text
        more: dict[str, Any] = {"input": "more", "previous_response_id": first.id, "max_output_tokens": 4}
        assert (await client.responses.create(model=POEMS.name, **more)).model == POEMS.name
        with pytest.raises(openai.BadRequestError, match=f"{first.id} is of model large"):
            await client.responses.create(model=TINY, **more)


async def test_a_response_that_is_made_is_found_by_its_id(cluster: TwoModels) -> None:
    cluster.large_decode.pause_at = 1
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="blue", max_retries=0) as client:
        made = await client.responses.create(model=LARGE, input="abc", background=True, stream=True)
        created = await anext(aiter(made))
        events = await client.responses.retrieve(created.response.id, stream=True)  # type: ignore[union-attr]
        assert (await anext(aiter(events))).type == "response.created"
        await cluster.large_decode.until(lambda: bool(cluster.large_decode.running))
        cancelled = await client.responses.cancel(created.response.id)  # type: ignore[union-attr]
        assert cancelled.status == "cancelled"
        await cluster.settled()


async def test_readiness_is_that_of_every_model(cluster: TwoModels, http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).status_code == 200
    await cluster.router.members(cluster.prefill, cluster.decode)
    async with asyncio.timeout(ANSWER_SECONDS):
        while (answer := await http.get("/health")).status_code == 200:
            pass
    assert answer.json()["reason"] == "model large: no worker is available"
    body = {**COMPLETION, "model": TINY}
    assert (await http.post("/v1/completions", json=body)).status_code == 200


async def test_a_model_that_embeds_comes_first(tiny_model: Path) -> None:
    """What is about no model, or is no sense, is answered in the words of the routes that it is for."""
    manifest = two_models(deployment={"mode": "local"})
    manifest["models"][0]["engine"] = {"task": "embed"}
    cluster = TwoModels(tiny_model, TINY, (LARGE,))
    try:
        await cluster.start(manifest)
        async with cluster.client() as http:
            assert (await http.get("/status")).json()["data"]["models"]["total"] == 2
            assert (await http.get(f"/model?model={LARGE}")).status_code == 200
            for path in ("/v1/completions", "/generate", "/v1/embeddings"):
                for wrong in (b"{", b'{"model": 5}', b'{"model": ["tiny"]}', b'{"model": true}'):
                    kind = {"content-type": "application/json"}
                    assert (await http.post(path, content=wrong, headers=kind)).status_code == 400, path
    finally:
        await cluster.aclose()


async def test_models_come_and_go(cluster: TwoModels, http: httpx.AsyncClient, tiny_model: Path) -> None:
    apiserver, body = cluster.apiserver, {**COMPLETION, "model": LARGE}
    cluster.large_decode.pause_at = 1
    running = asyncio.create_task(http.post("/v1/completions", json=body))
    await cluster.large_decode.until(lambda: bool(cluster.large_decode.running))
    dropping = asyncio.create_task(apiserver.drop_model(LARGE, ANSWER_SECONDS))
    await asyncio.sleep(0)
    assert (await http.post("/v1/completions", json=body)).status_code == 404
    cluster.large_decode.go.set()
    assert (await running).json()["choices"][0]["text"] == text_of(OTHER_TEXT)
    await dropping
    assert counted(cluster) == {TINY}
    assert (await http.get("/health")).status_code == 200
    with pytest.raises(InvalidRequest, match="tiny is the only one"):
        await apiserver.drop_model(TINY, 0)
    with pytest.raises(NotFound):
        await apiserver.drop_model(LARGE, 0)

    alone = Manifest.model_validate(two_models()).for_model(LARGE)
    await apiserver.add_model(ModelDirectory(LARGE, tiny_model), alone)
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    await cluster.settled()
    assert cluster.count("apiserver_requests_total", model=LARGE) == 1, "that of before is forgotten"
    with pytest.raises(InvalidRequest, match="large is loaded already"):
        await apiserver.add_model(ModelDirectory(LARGE, tiny_model), alone)


async def test_an_apiserver_follows_the_router_s_models(
    cluster: TwoModels, http: httpx.AsyncClient, tiny_model: Path
) -> None:
    """The routes are made beside the loop; requests for a model on its way wait as long as they may."""
    router = cluster.router
    assert router.answering[-1].names == {TINY, LARGE}
    entry = '{"source": "hub:some/third", "name": "third", "tenants": ["blue"]}'
    third = ServedName("third", entry, str(tiny_model))
    manifest = [ServedName(name, f'{{"source": "hub:some/{name}"}}', declared=True) for name in (TINY, LARGE)]
    router.served = (*manifest, third)
    await router.members(*router.workers)
    await router.until(lambda: "third" in router.answering[-1].names)
    assert (await http.get("/health")).status_code == 200, "one that is being loaded does not count"
    async with cluster.client("red") as other:
        assert (await other.post("/v1/completions", json={**COMPLETION, "model": "third"})).status_code == 404
    router.hold = True
    waiting = asyncio.create_task(http.post("/v1/completions", json={**COMPLETION, "model": "third"}))
    await router.until(lambda: bool(router.admits) and router.admits[-1].model == "third")
    assert router.admits[-1].timeout_seconds == 600
    waiting.cancel()
    router.hold = False
    router.served = (*manifest, replace(third, ready=True))
    await router.members(*router.workers)
    async with asyncio.timeout(ANSWER_SECONDS):
        while (await http.get("/health")).status_code == 200:
            await router.turn()
    assert "model third: no worker is available" in (await http.get("/health")).text
    router.served = tuple(manifest)
    await router.members(*router.workers)
    await router.until(lambda: "third" not in router.answering[-1].names)
    assert (await http.post("/v1/completions", json={**COMPLETION, "model": "third"})).status_code == 404
    assert (await http.get("/health")).status_code == 200
    await cluster.settled()


async def test_admins_load_and_unload_models(cluster: TwoModels) -> None:
    path, entry = "/admin/v1/models", {"source": "hub:o/b", "name": "o/b", "engine": {"max_model_len": 64}}
    async with cluster.client("root") as http:
        loaded = await http.post(path, json={**entry, "swap": LARGE})
        assert (loaded.json()["name"], loaded.json()["state"]) == ("o/b", "ready")
        (request,) = cluster.router.model_loads
        assert (json.loads(request.entry), request.swap) == (entry, LARGE)
        assert (await http.get(path)).json()["models"][0]["detail"] == "42 %"
        assert (await http.delete(f"{path}/o/b?wait=false")).json()["state"] == "draining"
        assert (await http.delete(f"{path}/o/b")).status_code == 200, "it is not in the list any more"
        assert (await http.delete(f"{path}/nope")).status_code == 404
        for wrong in ({**entry, "swap": 5}, {**entry, "wait": "no"}):
            assert (await http.post(path, json=wrong)).status_code == 400
        refused = await http.post(path, json={**entry, "swap": LARGE, "pull": True})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "swap")
        assert len(cluster.router.model_loads) == 1, "the router is not asked"
    async with cluster.client() as http:
        assert (await http.get(path)).status_code == 403
        assert (await http.post("/models/load", json={"model_id": "o/b"})).status_code == 403


async def test_models_are_loaded_as_torchweave_does(cluster: TwoModels) -> None:
    async with cluster.client("root") as http:
        for field in ("model_id", "custom_model_id"):
            loaded = (await http.post("/models/load", json={field: "distilgpt2"})).json()
            assert (loaded["success"], loaded["model_id"], loaded["status_code"]) == (True, "distilgpt2", 200)
            assert loaded["message"] == "Model distilgpt2 loaded successfully"
            assert loaded["load_time"] >= 0
        assert json.loads(cluster.router.model_loads[0].entry) == {
            "source": "distilgpt2",
            "name": "distilgpt2",
        }
        unloaded = (await http.post("/models/unload", json={"model_id": "distilgpt2"})).json()
        assert unloaded["message"] == "Model distilgpt2 unloaded successfully"
        assert (await http.post("/models/load", json={})).status_code == 400


async def test_models_are_searched_as_torchweave_does(
    cluster: TwoModels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the hub, and on this machine also when there is no network."""
    here = [LocalModel(name, "", tmp_path, tmp_path, 7) for name in ("o/tiny", "b")]
    hub = [HubModel(name, 9, gated=False) for name in ("o/tiny", "o/tiny-2", "o/tiny-3")]
    monkeypatch.setattr(original_routes, "local_models", lambda cache: here)
    monkeypatch.setattr(original_routes, "search_hub", lambda text, limit: hub[:limit])
    async with cluster.client("root") as http:
        found = (await http.get("/models/search/TINY?limit=2")).json()
        assert (found["success"], found["message"]) == (True, "Models found: 2")
        assert found["data"] == [
            {"model_id": "o/tiny", "downloads": 9, "local": True},
            {"model_id": "o/tiny-2", "downloads": 9, "local": False},
        ]
        monkeypatch.setattr(original_routes, "search_hub", away)
        found = (await http.get("/models/search/o/tiny")).json()
        assert found["message"] == "Models found: 1; the hub cannot be asked: no network"
        assert found["data"] == [{"model_id": "o/tiny", "downloads": None, "local": True}]
        assert (await http.get("/models/search/tiny?limit=0")).status_code == 400
    async with cluster.client() as http:
        assert (await http.get("/models/search/tiny")).status_code == 403


def away(text: str, limit: int) -> list[HubModel]:
    raise Unavailable("the hub cannot be asked: no network")


async def test_a_model_is_made_beside_the_loop(
    cluster: TwoModels, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These take up to seconds, in which streams of other models go on."""
    made = dict[str, bool]()

    def watch(where: str, name: str) -> None:
        module = importlib.import_module(f"llmserve.apiserver.{where}")
        make = getattr(module, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            made[name] = threading.current_thread() is not threading.main_thread()
            return make(*arguments, **named)

        monkeypatch.setattr(module, name, watched)

    for name in ("serving_args", "vllm_config", "fitting_renderer"):
        watch("models.door", name)
    for name in ("build_app", "init_app_state"):
        watch("http.app", name)
    manifest = Manifest.model_validate(two_models()).for_model(LARGE)
    await cluster.apiserver.drop_model(LARGE, 0)
    await cluster.apiserver.add_model(ModelDirectory(LARGE, tiny_model), manifest)
    assert len(made) == 5
    assert all(made.values()), made


async def test_what_does_not_end_in_time_is_ended(cluster: TwoModels, http: httpx.AsyncClient) -> None:
    cluster.large_decode.pause_at = 1
    body = {**COMPLETION, "model": LARGE}
    running = asyncio.create_task(http.post("/v1/completions", json=body))
    await cluster.large_decode.until(lambda: bool(cluster.large_decode.running))
    await cluster.apiserver.drop_model(LARGE, 0.05)
    answer = await running
    assert answer.status_code == 503
    assert "model large is being unloaded" in answer.text
    await cluster.settled()


async def test_a_model_that_cannot_be_made_leaves_nothing(
    cluster: TwoModels, http: httpx.AsyncClient, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(app: Any) -> str:
        return "it does not answer"

    before = asyncio.all_tasks()
    monkeypatch.setattr("llmserve.apiserver.models.door.api_failure", refuse)
    manifest = Manifest.model_validate(two_models()).for_model(LARGE)
    with pytest.raises(StartFailed, match="it does not answer"):
        await cluster.apiserver.add_model(ModelDirectory("third", tiny_model), manifest)
    monkeypatch.undo()
    assert "third" not in (await http.get("/v1/models")).text
    assert counted(cluster) == {TINY, LARGE}
    assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()
