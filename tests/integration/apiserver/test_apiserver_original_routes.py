"""The routes of the original projects, each called as in its project's own examples and tests."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from llmserve.apiserver.auth.permissions import GENERATING_PATHS
from llmserve.core.errors import DeadlineExceeded, Overloaded, QueueFull, WorkerLost
from llmserve.core.request import Outcome
from tests.integration.apiserver.manifests import manifest_of

KEY = {"authorization": "Bearer red-key"}
# The tiny model goes on with the bytes of this text from the length of the prompt on.
TEXT = "the quick brown fox jumps over the lazy dog. " * 5
TORCHWEAVE: dict[str, Any] = {"prompt": "Explain quantum computing", "max_new_tokens": 64}
HELLO = "Hello, I am"


def answer_to(prompt: str, tokens: int = 128) -> str:
    return TEXT[len(prompt) :][:tokens]


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    return manifest_of(security={"api_keys": [{"tenant": "red", "key": "red-key"}]})


@pytest.fixture
def http(http: httpx.AsyncClient) -> httpx.AsyncClient:
    http.headers.update(KEY)
    return http


def events_of(body: str) -> list[tuple[str, str]]:
    """The name and the data of each event, as clients of event streams read them."""
    events = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        fields = [line.partition(": ")[::2] for line in block.split("\n") if not line.startswith(":")]
        data = "\n".join(value for name, value in fields if name == "data")
        if fields:
            events.append((dict(fields).get("event", ""), data))
    return events


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/generate/stream", "/stream"])
async def test_torchweave_s_stream(cluster: Any, http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path, json=TORCHWEAVE)
    assert answer.headers["content-type"].startswith("text/event-stream")
    (first, seconds), *texts, last = events_of(answer.text)
    assert (first, last) == ("ttft", ("done", ""))
    assert 0 < float(seconds) < 50
    assert {name for name, _ in texts} == {""}
    assert "".join(text for _, text in texts) == answer_to(TORCHWEAVE["prompt"], 64)


async def test_torchweave_s_baseline(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/generate_nobatch", json=TORCHWEAVE)
    assert answer.json() == {"text": answer_to(TORCHWEAVE["prompt"], 64)}


async def test_requests_of_the_baseline_run_one_after_another(cluster: Any, http: httpx.AsyncClient) -> None:
    cluster.decode.pause_at = 1
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(http.post("/v1/generate_nobatch", json=TORCHWEAVE)) for _ in range(3)]
        await cluster.decode.until(lambda: bool(cluster.decode.seen))
        batched = group.create_task(http.post("/generate_vllm", json={"prompts": [HELLO]}))
        await cluster.decode.until(lambda: len(cluster.decode.seen) == 2)
        assert len(cluster.router.admits) == 2
        cluster.decode.go.set()
    assert {task.result().status_code for task in (*tasks, batched)} == {200}
    assert len(cluster.router.admits) == 4


async def test_waiting_for_the_baseline_counts_for_the_deadline(
    cluster: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmserve.apiserver import original_routes

    monkeypatch.setattr(original_routes, "_MOST_WAITING", 1)
    turn = original_routes.BaselineTurn(lambda: 0.01)
    async with turn.taken():
        with pytest.raises(DeadlineExceeded, match="no turn within"):
            async with turn.taken():
                pass
    turn = original_routes.BaselineTurn(lambda: 5.0)
    async with turn.taken():
        waiting = asyncio.create_task(turn.taken().__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="one at a time"):
            await turn.taken().__aenter__()
    await waiting


async def test_torchweave_s_generate_of_its_readme(cluster: Any, http: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"prompt": "Hello, how are you?", "max_length": 50, "temperature": 0.7}
    answer = await http.post("/generate", json=body)
    assert answer.json() == {"text": [body["prompt"] + answer_to(body["prompt"], 50)]}


async def test_the_generate_of_vllm_s_demo_server(cluster: Any, http: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"prompt": "San Francisco is a", "n": 2, "temperature": 0.5, "max_tokens": 7}
    whole = (await http.post("/generate", json=body)).json()
    assert whole == {"text": 2 * [body["prompt"] + answer_to(body["prompt"], 7)]}
    streamed = await http.post("/generate", json={**body, "stream": True})
    assert json.loads(streamed.text.splitlines()[-1]) == whole
    assert len(streamed.text.splitlines()) > 7


async def test_the_book_s_server(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await http.post("/basic_generate", json={"prompt": HELLO})
    assert answer.json() == {"generated_text": HELLO + answer_to(HELLO)}
    prompts = [HELLO, "The weather is", "I want to", "The best way to", "The most efficient way to"]
    answer = await http.post("/generate", json={"prompts": prompts})
    assert answer.json() == {"generated_texts": [prompt + answer_to(prompt) for prompt in prompts]}
    answer = await http.post("/generate_vllm", json={"prompts": prompts})
    assert answer.json() == {"generated_texts": [answer_to(prompt) for prompt in prompts]}


async def test_the_book_s_stream(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await http.post("/generate_stream", json={"prompt": HELLO})
    events = [json.loads(data) for _, data in events_of(answer.text)]
    assert "".join(event["token"] for event in events) == answer_to(HELLO)
    assert len({event["sequence_id"] for event in events}) == 1


async def test_chat(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat", json={"messages": [{"role": "user", "content": HELLO}]})
    assert answer.json() == {"text": answer_to(HELLO)}
    assert (await http.post("/v1/chat", json={"prompt": HELLO, "max_new_tokens": 3})).json() == {
        "text": answer_to(HELLO, 3)
    }
    streamed = await http.post("/v1/chat", json={"prompt": HELLO, "max_new_tokens": 3, "stream": True})
    assert [name for name, _ in events_of(streamed.text)] == ["ttft", "", "", "", "done"]


async def test_a_text_of_several_lines_is_one_event(cluster: Any, http: httpx.AsyncClient) -> None:
    from llmserve.apiserver.original_routes import _event

    assert _event("a\nb\r\n c", "x") == "event: x\ndata: a\ndata: b\ndata:  c\n\n"
    assert events_of(_event("a\n\nb")) == [("", "a\n\nb")]


async def test_the_model_and_the_system_are_described(cluster: Any, http: httpx.AsyncClient) -> None:
    assert (await http.get("/model")).json() == {
        "vocab_size": 258,
        "eos": "</s>",
        "device": "auto",
        "max_batch_size": 64,
    }
    status = (await http.get("/status")).json()
    assert status["success"] is True
    assert status["data"]["system"]["healthy"] is True
    assert status["data"]["models"] == {"total": 1, "available": 1, "loading": 0, "error": 0}
    await cluster.router.members()
    async with asyncio.timeout(30):
        while (status := (await http.get("/status")).json()["data"])["system"]["healthy"]:
            pass
    assert status["models"]["available"] == 0


# -- what holds on every route


async def test_keys_and_tenants_hold(cluster: Any, http: httpx.AsyncClient) -> None:
    for path in sorted(GENERATING_PATHS):
        refused = await http.post(path, json=TORCHWEAVE, headers={"authorization": "Bearer no"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "AuthenticationError"), path
        assert (await http.post(path, json={**TORCHWEAVE, "max_new_tokens": 2})).status_code == 200, path
    for path in ("/model", "/status"):
        assert (await http.get(path, headers={"authorization": ""})).status_code == 401
    assert {admit.tenant for admit in cluster.router.admits} == {"red"}
    assert len(cluster.router.admits) == len(sorted(GENERATING_PATHS))


async def test_a_limit_has_its_own_status_in_streams_as_well(cluster: Any, http: httpx.AsyncClient) -> None:
    cluster.router.refuse_with = (Outcome.REJECTED, Overloaded("enough", retry_after_seconds=7))
    for path in sorted(GENERATING_PATHS):
        for stream in (False, True):
            answer = await http.post(path, json={**TORCHWEAVE, "stream": stream})
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "7"), path
            assert answer.json()["error"]["type"] == "RateLimitError"


ERRORS: list[tuple[dict[str, Any], int, str | None]] = [
    ({"prompt": "a", "max_new_tokens": "many"}, 400, "max_tokens"),
    ({"prompt": "a", "max_new_tokens": 4, "max_length": 5}, 400, "max_length"),
    ({"prompt": "a", "temperature": -1}, 400, "temperature"),
    ({"prompt": "a", "model_id": "gpt2"}, 404, "model"),
    ({}, 400, "prompt"),
    ({"prompts": []}, 400, None),
]


async def test_errors_are_those_of_completions(
    cluster: Any, http: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for fields, status, param in ERRORS:
        with subtests.test(fields=fields, status=status, param=param):
            for path in ("/generate", "/generate_vllm", "/v1/generate"):
                answer = await http.post(path, json=fields)
                error = answer.json()["error"]
                assert answer.status_code == status, answer.text
                assert param is None or param in (error["param"] or error["message"]), error
            assert not cluster.router.admits


async def test_what_gives_one_answer_takes_one_prompt(cluster: Any, http: httpx.AsyncClient) -> None:
    for path in GENERATING_PATHS - {"/generate", "/generate_vllm", "/v1/chat"}:
        for fields in ({"prompts": ["a", "b"]}, {"prompt": "a", "n": 2}):
            answer = await http.post(path, json=fields)
            assert (answer.status_code, "one answer" in answer.text) == (400, True), path
    body = {"prompts": ["a"], "max_tokens": None, "max_new_tokens": 2}
    one = await http.post("/v1/generate_nobatch", json=body)
    assert one.json() == {"text": answer_to("a", 2)}


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/v1/generate", "event: error\ndata: no worker is left"),
        ("/generate_stream", 'data: {"error": {"message": "no worker is left'),
        ("/generate", '{"error": {"message": "no worker is left'),
    ],
)
async def test_a_stream_that_fails_says_so_at_its_end(
    cluster: Any, http: httpx.AsyncClient, path: str, last: str
) -> None:
    cluster.decode.pause_at = 1
    body = {"prompt": HELLO, "stream": True}
    async with asyncio.TaskGroup() as group:
        answer = group.create_task(http.post(path, json=body))
        await cluster.decode.until(lambda: bool(cluster.decode.seen))
        cluster.decode.fail_with = WorkerLost("the worker is away")
        cluster.decode.go.set()
    text = answer.result().text
    assert answer.result().status_code == 200
    assert last in text
    assert "event: done" not in text


async def test_the_openapi_document_lists_them(cluster: Any, http: httpx.AsyncClient) -> None:
    listed = (await http.get("/openapi.json")).json()
    assert {*sorted(GENERATING_PATHS), "/model", "/status"} <= set(listed["paths"])
    assert "max_new_tokens" in listed["components"]["schemas"]["GenerateBody"]["properties"]


@pytest.mark.parametrize(
    ("wanted", "mode", "served"),
    [(None, "local", True), (None, "k8s", False), (True, "k8s", True), (False, "local", False)],
)
def test_where_they_are_served(
    wanted: bool | None, mode: str, served: bool, manifest: dict[str, Any]
) -> None:
    from llmserve.apiserver.original_routes import serves_original_routes
    from llmserve.config.schema import Manifest

    changed = {**manifest, "api": {"original_routes": wanted}, "deployment": {"mode": mode}}
    assert serves_original_routes(Manifest.model_validate(changed)) is served
