"""Adapters by `model`: which version a request runs on, and what stays the model's own."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest

from llmserve.core.adapters import NamedAdapter
from llmserve.core.errors import WorkerLost
from llmserve.core.ids import AdapterDigest
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WORKER_ROLE_DECODE
from tests.integration.apiserver.manifests import manifest_of

ONE, TWO, OTHER = (AdapterDigest(digit * 64) for digit in "123")
SQL = NamedAdapter("sql", ONE, "tiny", "dir:/adapters/sql", rank=8, size_bytes=4096)
LEGAL = NamedAdapter("org/legal", OTHER, "tiny", "hub:org/legal")
NEW_SQL = NamedAdapter("sql", TWO, "tiny", "dir:/adapters/sql")
MESSAGES = [{"role": "user", "content": "hello there, what is all this about?"}]

BODIES: Mapping[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/chat/completions/batch": {"messages": [MESSAGES], "max_tokens": 4},
    "/v1/completions": {"prompt": "hello there, what is all this about?", "max_tokens": 4},
    "/v1/responses": {"input": "hello there, what is all this about?", "max_output_tokens": 4},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
}


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    keys = [
        {"tenant": "red", "key": "red-key"},
        {"tenant": "red", "key": "sql-key", "adapters": ["sql"]},
    ]
    return manifest_of(security={"api_keys": keys})


@pytest.fixture
async def http(cluster: Any, http: httpx.AsyncClient) -> httpx.AsyncClient:
    http.headers["authorization"] = "Bearer red-key"
    await cluster.named(SQL, LEGAL)
    return http


def digests(cluster: Any) -> list[str]:
    """Those of all legs, after those of all admissions."""
    legs = (request for worker in (cluster.prefill, cluster.decode) for request in worker.seen.values())
    return [*(admit.adapter for admit in cluster.router.admits), *(leg.adapter for leg in legs)]


@pytest.mark.parametrize("path", BODIES)
async def test_a_name_is_served_by_its_version_alone(
    cluster: Any, http: httpx.AsyncClient, path: str
) -> None:
    answer = await http.post(path, json={"model": "sql", **BODIES[path]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "sql"
    assert digests(cluster) == [ONE] * 3


@pytest.mark.parametrize("path", BODIES)
async def test_the_model_itself_has_no_adapter(cluster: Any, http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path, json={"model": "tiny", **BODIES[path]})
    assert answer.json()["model"] == "tiny"
    assert answer.json().get("system_fingerprint", "vllm-").startswith("vllm-")  # null when it is not set
    assert digests(cluster) == [""] * 3


async def test_a_stream_has_the_adapter_s_name(cluster: Any, http: httpx.AsyncClient) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        answer = await http.post(path, json={"model": "sql", "stream": True, **BODIES[path]})
        events = [line for line in answer.text.splitlines() if line.startswith('data: {"id"')]
        assert events
        assert all('"model":"sql"' in event for event in events)


async def test_content_of_a_type_that_is_an_adapter_s_name_chooses_none(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    await cluster.named(NamedAdapter("text", ONE, "tiny"))
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    for path, messages in (
        ("/v1/chat/completions", parts),
        ("/v1/chat/completions/batch", [parts]),
        ("/v1/messages", parts),
    ):
        answer = await http.post(path, json={"model": "tiny", "messages": messages, "max_tokens": 2})
        assert answer.json()["model"] == "tiny"
    assert not any(digests(cluster))


async def test_all_choices_and_prompts_of_a_request_have_its_version(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    body = {"model": "sql", "prompt": ["a" * 40, "b" * 40], "n": 2, "max_tokens": 3, "temperature": 1.0}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    assert set(digests(cluster)) == {ONE}
    assert len(cluster.router.admits) == 2


async def test_versions_and_the_model_share_no_blocks(cluster: Any, http: httpx.AsyncClient) -> None:
    salts, first_blocks = set(), set()
    for adapter in (SQL, NEW_SQL):
        await cluster.named(adapter, LEGAL)
        await http.post("/v1/completions", json={"model": "sql", **BODIES["/v1/completions"]})
    for model in ("tiny", "org/legal"):
        await http.post("/v1/completions", json={"model": model, **BODIES["/v1/completions"]})
    for admit, leg in zip(cluster.router.admits, cluster.prefill.seen.values(), strict=True):
        first_blocks.add(admit.block_hashes[0])
        salts.add(leg.cache_salt)
    assert len(salts) == len(first_blocks) == 4


async def test_two_names_of_one_version_share_blocks(cluster: Any, http: httpx.AsyncClient) -> None:
    await cluster.named(SQL, NamedAdapter("alias", ONE, "tiny"))
    for model in ("sql", "alias"):
        await http.post("/v1/completions", json={"model": model, **BODIES["/v1/completions"]})
    one, other = cluster.router.admits
    assert list(one.block_hashes) == list(other.block_hashes) != []


async def test_a_request_ends_on_the_version_with_which_it_began(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    """Its name moves on while it runs, its worker is lost, and the router comes back without knowing it."""
    cluster.decode.pause_at = 1
    await cluster.add("decode-1", WORKER_ROLE_DECODE)
    body = {"model": "sql", **BODIES["/v1/completions"], "max_tokens": 8}
    asking = asyncio.create_task(http.post("/v1/completions", json=body))
    await cluster.decode.until(lambda: len(cluster.decode.seen) == 1)
    await cluster.named(NEW_SQL, LEGAL)
    await cluster.router.crash()
    await cluster.router.start()
    await cluster.router.until(lambda: len(cluster.router.hellos) == 2)
    assert [held.adapter for held in cluster.router.hellos[1].held] == [ONE]
    cluster.decode.fail_with = WorkerLost("gone")
    cluster.decode.go.set()
    answer = await asking
    assert answer.status_code == 200, answer.text
    retried = cluster.extra[0].seen.values()
    assert [leg.adapter for leg in retried] == [ONE]
    assert set(digests(cluster)) == {ONE}
    after = await http.post("/v1/completions", json=body)
    assert after.status_code == 200
    assert cluster.router.admits[-1].adapter == TWO


async def test_an_unloaded_name_is_unknown(cluster: Any, http: httpx.AsyncClient) -> None:
    await cluster.named(LEGAL)
    answer = await http.post("/v1/completions", json={"model": "sql", **BODIES["/v1/completions"]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")
    assert not cluster.router.admits


async def test_the_models_are_listed_with_their_parent(cluster: Any, http: httpx.AsyncClient) -> None:
    cards = {card["id"]: card for card in (await http.get("/v1/models")).json()["data"]}
    assert list(cards) == ["tiny", "sql", "org/legal"]
    assert (cards["tiny"]["parent"], cards["sql"]["parent"]) == (None, "tiny")
    assert cards["sql"]["root"] == "dir:/adapters/sql"
    assert {card["max_model_len"] for card in cards.values()} == {200}
    one = (await http.get("/v1/models/org/legal")).json()
    assert (one["id"], one["parent"]) == ("org/legal", "tiny")
    claude = await http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
    assert [card["max_tokens"] for card in claude.json()["data"]] == [200] * 3


async def test_a_key_knows_only_its_adapters(cluster: Any, http: httpx.AsyncClient) -> None:
    http.headers["authorization"] = "Bearer sql-key"
    cards = (await http.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == ["tiny", "sql"]
    assert (await http.get("/v1/models/org/legal")).status_code == 404
    statuses = {}
    for model in ("tiny", "sql", "org/legal"):
        answer = await http.post("/v1/completions", json={"model": model, **BODIES["/v1/completions"]})
        statuses[model] = answer.status_code
    assert statuses == {"tiny": 200, "sql": 200, "org/legal": 404}


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_tokens_are_the_model_s_under_each_name(
    cluster: Any, http: httpx.AsyncClient, path: str
) -> None:
    body = {"prompt": "hello"} if path == "/tokenize" else {"tokens": [7, 8, 9]}
    answers = [(await http.post(path, json={"model": name, **body})).json() for name in ("tiny", "sql")]
    assert answers[0] == answers[1]
    assert (await http.post(path, json={"model": "none", **body})).status_code == 404


@pytest.mark.parametrize("sampling", [{}, {"presence_penalty": 0.5}, {"n": 2, "temperature": 1.0}])
async def test_explain_says_name_version_and_what_loading_took(
    cluster: Any, http: httpx.AsyncClient, sampling: dict[str, Any]
) -> None:
    body = {"model": "sql", **BODIES["/v1/completions"], **sampling}
    answer = await http.post("/v1/completions", json=body)
    record = (await http.get(f"/v1/requests/{answer.json()['id']}/explain")).json()
    for sequence in record["sequences"]:
        adapter = sequence["adapter"]
        assert (adapter["name"], adapter["version"]) == ("sql", ONE)
        assert {load["leg"] for load in adapter["loads"]} == {"prefill", "decode"}
        assert {(load["tier"], load["seconds"]) for load in adapter["loads"]} == {("disk", 0.25)}


async def test_explain_says_nothing_of_adapters_of_the_model_itself(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    answer = await http.post("/v1/completions", json={"model": "tiny", **BODIES["/v1/completions"]})
    record = (await http.get(f"/v1/requests/{answer.json()['id']}/explain")).json()
    assert record["sequences"][0]["adapter"] is None


@pytest.fixture
def swapped(cluster: Any) -> Callable[..., None]:
    """Moves the name to these versions while the next request is on its way through vLLM's layer, and lets
    the router forget others."""
    client = cluster.apiserver.models.first.client
    process = client._process

    def swap(*adapters: NamedAdapter, gone: set[AdapterDigest]) -> None:
        async def process_slowly(*args: Any) -> Any:
            client._process = process
            cluster.apiserver._adapters.update(adapters)
            cluster.router.gone = gone
            return await process(*args)

        cluster.router.gone, client._process = set(), process_slowly

    return swap


@pytest.mark.parametrize("more", [{}, {"n": 2, "temperature": 1.0}, {"prompt": ["a" * 40, "b" * 40]}])
async def test_a_request_that_a_swap_overtakes_runs_on_the_present_version(
    cluster: Any, http: httpx.AsyncClient, swapped: Callable[..., None], more: dict[str, Any]
) -> None:
    swapped(NEW_SQL, LEGAL, gone={ONE})
    body = {"model": "sql", **BODIES["/v1/completions"], **more}
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    seen = digests(cluster)
    admits = len(cluster.router.admits) // 2
    assert sorted(seen) == [*[ONE] * admits, *[TWO] * (len(seen) - admits)]
    record = (await http.get(f"/v1/requests/{answer.json()['id']}/explain")).json()
    assert {one["adapter"]["version"] for one in record["sequences"]} == {TWO}


async def test_what_it_then_reads_is_the_present_version_s(
    cluster: Any, http: httpx.AsyncClient, swapped: Callable[..., None]
) -> None:
    swapped(NEW_SQL, LEGAL, gone={ONE})
    for _ in range(2):  # the second one has the present version from its start
        await http.post("/v1/completions", json={"model": "sql", **BODIES["/v1/completions"]})
    _, moved, fresh = cluster.router.admits
    assert list(moved.block_hashes) == list(fresh.block_hashes) != []
    assert len({leg.cache_salt for leg in cluster.prefill.seen.values()}) == 1


@pytest.mark.parametrize(
    ("adapters", "gone", "more", "asked"),
    [
        ([LEGAL], {ONE}, {}, [ONE]),
        ([SQL, LEGAL], {ONE}, {}, [ONE]),
        ([NEW_SQL, LEGAL], {ONE, TWO}, {}, [ONE, TWO]),
        ([NEW_SQL, LEGAL], {ONE}, {"lora_path": ONE}, [ONE]),
        ([NEW_SQL, LEGAL], {ONE}, {"model": ONE, "lora_path": "sql"}, [ONE]),
        ([NEW_SQL, LEGAL], {ONE}, {"lora_path": "sql"}, [ONE, TWO]),
    ],
    ids=["unloaded", "not moved", "gone as well", "by digest", "by digest and name", "by name"],
)
async def test_it_is_404_without_another_version_of_its_own_name(
    cluster: Any,
    http: httpx.AsyncClient,
    swapped: Callable[..., None],
    adapters: list[NamedAdapter],
    gone: set[AdapterDigest],
    more: dict[str, Any],
    asked: list[AdapterDigest],
) -> None:
    swapped(*adapters, gone=gone)
    answer = await http.post("/v1/completions", json={"model": "sql", **BODIES["/v1/completions"], **more})
    assert answer.status_code == (404 if asked[-1] in gone else 200), answer.text
    assert [admit.adapter for admit in cluster.router.admits] == asked


async def test_a_request_that_was_placed_moves_to_no_other_version(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    cluster.decode.pause_at = 1
    body = {"model": "sql", **BODIES["/v1/completions"], "max_tokens": 8}
    asking = asyncio.create_task(http.post("/v1/completions", json=body))
    await cluster.decode.until(lambda: len(cluster.decode.seen) == 1)
    await cluster.named(NEW_SQL, LEGAL)
    cluster.router.gone = {ONE}
    cluster.decode.fail_with = WorkerLost("gone")
    cluster.decode.go.set()
    assert (await asking).status_code == 404
    assert [admit.adapter for admit in cluster.router.admits] == [ONE, ONE]
