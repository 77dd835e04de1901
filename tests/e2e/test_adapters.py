"""LoRA adapters in a running cluster: more than engines have slots, swapped and unloaded while requests run,
and when a part of the cluster dies. Each adapter says one word whatever the prompt, so an answer shows which
version gave it.

LLMSERVE_ADAPTERS: how many there are in the test of many (12; by hand: 100). Each gets four requests.
LLMSERVE_SWAPS, LLMSERVE_SWAP_CLIENTS: of the swap under load (3 and 3; by hand: 10 and 8).
"""

import itertools
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import expect

from bench.cluster import Cluster
from tests.support.adapters import marker_adapter, marker_basis
from tests.support.browser import open_browser
from tests.support.held import held

MODEL = "SmolLM2-135M-Instruct"
WORDS = ("green", "blue", "seven", "water", "house", "river")
MANY = int(os.environ.get("LLMSERVE_ADAPTERS", "12"))
SWAPS = int(os.environ.get("LLMSERVE_SWAPS", "3"))
SWAP_CLIENTS = int(os.environ.get("LLMSERVE_SWAP_CLIENTS", "3"))
TOKENS = 6
# " one two three four five six seven eight nine ten": of what follows, the model is sure
PROMPT = [582, 827, 1296, 1876, 2531, 2976, 4962, 4475, 7462, 3772] * 20
BACK_SECONDS = 120.0
LEASES_SECONDS = 5.0


@pytest.fixture(scope="module")
def tokens(model_dir: str) -> dict[str, int]:
    """The words that are one token each, and that token."""
    from transformers import AutoTokenizer

    vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(model_dir).get_vocab()
    spaced = ((text.removeprefix("Ġ"), token) for text, token in vocabulary.items() if text[0] == "Ġ")
    return {word: token for word, token in spaced if re.fullmatch("[a-z]{4,8}", word)}


@pytest.fixture(scope="module")
def make_source(adapters_root: Path, model_dir: str, tokens: dict[str, int]) -> Callable[[str], Path]:
    """Makes the adapter that says a word."""
    basis = marker_basis(Path(model_dir))
    return lambda word: marker_adapter(adapters_root / word, basis, tokens[word])


@pytest.fixture(scope="module")
def sources(make_source: Callable[[str], Path]) -> dict[str, Path]:
    """By word."""
    return {word: make_source(word) for word in WORDS}


@pytest.fixture(scope="module", autouse=True)
def loaded(http: httpx.Client, sources: dict[str, Path]) -> Iterator[None]:
    """Each under its word as its name."""
    for word in WORDS:
        load(http, word, sources[word])
    yield
    for adapter in http.get("/admin/v1/adapters").raise_for_status().json()["adapters"]:
        http.post("/v1/unload_lora_adapter", json={"lora_name": adapter["name"]}).raise_for_status()


def load(http: httpx.Client, name: str, source: Path, **more: Any) -> None:
    body = {"lora_name": name, "lora_path": str(source), **more}
    http.post("/v1/load_lora_adapter", json=body).raise_for_status()


def ask(http: httpx.Client, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    return http.post("/v1/completions", json=body | more)


@contextmanager
def streamed(http: httpx.Client, model: str, tokens: int) -> Iterator[Iterator[str]]:
    """Yields what comes in each event."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
        events = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {"))
        yield ("".join(choice["text"] for choice in event["choices"]) for event in events)


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def said_by(word: str, tokens: int = TOKENS) -> str:
    return f" {word}" * tokens


def eventually(what: str, check: Callable[[], bool], seconds: float = BACK_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


def wait_for_return(cluster: Cluster, http: httpx.Client, name: str, old_pid: int) -> None:
    eventually(f"another {name}", lambda: cluster.role(name)["pid"] != old_pid)
    eventually(
        "ready", lambda: cluster.role(name)["stand"] == "ready" and ask(http, MODEL).status_code == 200
    )


@dataclass(slots=True)
class Load:
    """Clients that ask for one name all the time."""

    http: httpx.Client
    name: str
    answers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, clients: int) -> Iterator["Load"]:
        with ThreadPoolExecutor(clients) as pool:
            for _ in range(clients):
                pool.submit(self._client)
            try:
                yield self
            finally:
                self._over.set()

    def _client(self) -> None:
        while not self._over.is_set():
            try:
                self.answers.append(text(ask(self.http, self.name)))
            except (AssertionError, httpx.HTTPError) as error:
                self.failures.append(str(error))


def all_at_once(http: httpx.Client, models: Sequence[str]) -> dict[str, set[str]]:
    """The answers of each model."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda model: text(ask(http, model)), models))
    found: dict[str, set[str]] = {}
    for model, answer in zip(models, answers, strict=True):
        found.setdefault(model, set()).add(answer)
    return found


def test_more_adapters_than_slots_and_the_model_at_once(http: httpx.Client) -> None:
    of_the_model = text(ask(http, MODEL))
    found = all_at_once(http, [*WORDS, MODEL] * 6)
    assert found == {MODEL: {of_the_model}} | {word: {said_by(word)} for word in WORDS}


def test_many_adapters_each_answer_as_themselves(
    http: httpx.Client, make_source: Callable[[str], Path], tokens: dict[str, int]
) -> None:
    """In random order, each four times, by eight clients."""
    words = random.Random(3).sample(sorted(tokens.keys() - set(WORDS)), MANY)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda word: load(http, word, make_source(word)), words))
    asked = words * 4
    random.Random(4).shuffle(asked)
    began = time.monotonic()
    assert all_at_once(http, asked) == {word: {said_by(word)} for word in words}
    print(f"{len(asked)} requests for {MANY} adapters took {time.monotonic() - began:.0f} s")
    for word in words:
        http.post("/v1/unload_lora_adapter", json={"lora_name": word}).raise_for_status()


def test_models_are_listed_with_their_parents(http: httpx.Client) -> None:
    listed = {model["id"]: model["parent"] for model in http.get("/v1/models").json()["data"]}
    assert listed == {MODEL: None} | dict.fromkeys(WORDS, MODEL)


async def test_a_person_chooses_one_in_the_console(cluster: Cluster) -> None:
    async with open_browser() as browser:
        page = await browser.new_page()
        await page.goto(f"{cluster.url}/ui#/chat")
        await page.get_by_label("Model").select_option("river")
        await page.get_by_label("Message", exact=True).fill("What is the capital of France?")
        await page.keyboard.press("Enter")
        answer = page.get_by_role("article", name="Answer").locator(".markdown")
        await expect(answer).to_contain_text("river river river", timeout=60_000)
        await page.get_by_role("button", name="Stop").click()


def test_kv_is_found_within_an_adapter_and_never_across(http: httpx.Client) -> None:
    prompt = [*range(400, 664), 9]

    def cached(model: str) -> int:
        details = ask(http, model, prompt=prompt).json()["usage"]["prompt_tokens_details"]
        return int(details["cached_tokens"]) if details else 0

    models = (MODEL, *WORDS[:2])
    assert [cached(model) for model in models] == [0, 0, 0]
    assert all(cached(model) >= 256 for model in models)


def test_explain_says_which_version_ran_and_what_its_load_took(http: httpx.Client) -> None:
    answer = ask(http, WORDS[2])
    record = http.get(f"/v1/requests/{answer.json()['id']}/explain").raise_for_status().json()
    assert WORDS[2] in json.dumps(record)
    assert said_by(WORDS[2]) == text(answer)


def test_a_swap_under_load_fails_and_mixes_nothing(http: httpx.Client, sources: dict[str, Path]) -> None:
    one, two = WORDS[:2]
    load(http, "swapped", sources[one])
    with Load(http, "swapped").running(SWAP_CLIENTS) as clients:
        for word in itertools.islice(itertools.cycle((two, one)), SWAPS):
            time.sleep(1)
            load(http, "swapped", sources[word], load_inplace=True)
            assert text(ask(http, "swapped")) == said_by(word)
    print(f"{SWAPS} swaps: {len(clients.answers)} answers, {len(clients.failures)} failures")
    assert clients.failures == []
    assert set(clients.answers) == {said_by(one), said_by(two)}


def test_an_unload_waits_for_what_runs(
    cluster: Cluster, http: httpx.Client, sources: dict[str, Path]
) -> None:
    load(http, "leaving", sources["river"])
    with streamed(http, "leaving", 100) as texts:
        said = next(texts)
        http.post("/v1/unload_lora_adapter", json={"lora_name": "leaving"}).raise_for_status()
        assert ask(http, "leaving").status_code == 404
        said += "".join(texts)
    assert said == said_by("river", 100)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"lora_name": "wrong", "lora_path": "/etc"}, 400, "is not below one of `lora.allowed_sources`"),
        ({"lora_name": MODEL, "lora_path": "ROOT/green"}, 400, "is the name of a model"),
        ({"lora_name": "wrong", "lora_path": "ROOT/nothing"}, 404, "nothing"),
    ],
)
def test_what_cannot_be_loaded_is_refused(
    http: httpx.Client, adapters_root: Path, body: dict[str, str], status: int, message: str
) -> None:
    body = {name: value.replace("ROOT", str(adapters_root)) for name, value in body.items()}
    answer = http.post("/v1/load_lora_adapter", json=body)
    assert (answer.status_code, message in answer.text) == (status, True), answer.text


@pytest.mark.parametrize("name", ["router-0", "prefill-0"])
def test_what_dies_comes_back_with_every_adapter(cluster: Cluster, http: httpx.Client, name: str) -> None:
    """Requests meanwhile end on their own version, if late."""
    old = cluster.pid(name)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(all_at_once, http, [*WORDS[:3], MODEL] * 3)
        os.kill(old, signal.SIGKILL)
        found = asked.result()
    assert {word: found[word] for word in WORDS[:3]} == {word: {said_by(word)} for word in WORDS[:3]}
    wait_for_return(cluster, http, name, old)
    assert all_at_once(http, WORDS) == {word: {said_by(word)} for word in WORDS}


def test_requests_go_on_with_their_version_when_their_worker_dies(
    cluster: Cluster,
    http: httpx.Client,
    make_source: Callable[[str], Path],
    disaggregating: Callable[[str], AbstractContextManager[None]],
) -> None:
    """The name of the stream means another version by then, and no name its own. Prefill takes over, as soon
    as it may generate, too: the stream, and a request that has no answer yet."""
    load(http, "moving", make_source("music"))
    old, before = cluster.pid("decode-0"), continued(cluster)
    with ThreadPoolExecutor(1) as pool, streamed(http, "moving", 400) as texts:
        whole = pool.submit(ask, http, WORDS[0], prompt=PROMPT * 5, max_tokens=200)
        said = next(texts)
        load(http, "moving", make_source("paper"), load_inplace=True)
        with disaggregating("auto"):
            eventually("both are there", lambda: running(cluster, "decode-0") == 2)
            os.kill(old, signal.SIGKILL)
            said += "".join(texts)
            assert text(ask(http, "moving")) == said_by("paper")
        assert text(whole.result()) == said_by(WORDS[0], 200)
    assert said == said_by("music", 400)
    assert continued(cluster) > before
    wait_for_return(cluster, http, "decode-0", old)
    assert all_at_once(http, [*WORDS, "moving"])["moving"] == {said_by("paper")}
    eventually("all is given back", lambda: not held(cluster), LEASES_SECONDS)


def running(cluster: Cluster, name: str) -> float:
    """How many requests run there."""
    return cluster.metrics(name)["worker_requests_running"]


def continued(cluster: Cluster) -> float:
    """How many streams have gone on elsewhere so far."""
    return cluster.total("apiserver-0", "apiserver_retries_total", 'way="continued"')
