"""Two small models of random weights that share a tokenizer, side by side on real engines: each answer is
what its model says alone. Like test_store.py, after the cluster of the other files has gone."""

import copy
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.cluster import Cluster, running
from tests.support.tiny_hybrid import greedy_answers
from tests.support.tiny_llama import VOCAB, make_tiny_llama

SEEDS = {"first": 1, "second": 2, "third": 3}  # of their weights
MODELS = ("first", "second")
CLIENTS = 8
# Between the report of the engines and the answer of those who waited: a few steps of a tiny model.
_AFTER_READY_SECONDS = 5.0
ANSWER = 12
REQUESTS = 200
_RANDOM = random.Random(16)
PROMPTS = [[_RANDOM.randrange(3, VOCAB) for _ in range(length)] for length in (20, 33, 64, 90, 150, 300)]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_tiny_llama(tmp_path_factory.mktemp(name), seed=seed) for name, seed in SEEDS.items()}


@pytest.fixture(scope="module")
def alone(directories: dict[str, Path]) -> dict[str, list[list[int]]]:
    return {name: greedy_answers(where, PROMPTS, ANSWER) for name, where in directories.items()}


@pytest.fixture(scope="module")
def cluster(
    manifest: dict[str, Any], directories: dict[str, Path], before_the_store: ExitStack
) -> Iterator[Cluster]:
    """The first one hands over, the second one does not."""
    before_the_store.close()
    own = copy.deepcopy(manifest)
    spec = own["spec"]
    del spec["lora"], spec["scheduling"]
    spec["models"] = [{"name": name, "source": f"dir:{directories[name]}"} for name in MODELS]
    spec["models"][1] |= {"disaggregated": False, "replicas": {"decode": 1}}
    spec["engine"] |= {"dtype": "float32", "max_model_len": 512}
    spec["kv_cache"]["memory_gb"] = 0.1
    spec["deployment"]["replicas"] = {"prefill": 1, "decode": 1}
    with running(own) as started:
        yield started


def test_mixed_requests_are_answered_as_by_each_model_alone(
    cluster: Cluster, alone: dict[str, list[list[int]]]
) -> None:
    assert alone["first"] != alone["second"]
    wanted = [
        _RANDOM.choice([(name, one) for name in MODELS for one in range(len(PROMPTS))])
        for _ in range(REQUESTS)
    ]

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda case: tokens_of(ask(cluster, *case)), wanted))
    wrong = [case for case, tokens in zip(wanted, answers, strict=True) if tokens != alone[case[0]][case[1]]]
    assert wrong == []


def ask(cluster: Cluster, name: str, number: int) -> httpx.Response:
    body = {"model": name, "prompt": PROMPTS[number], "max_tokens": ANSWER, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    return httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=300)


def tokens_of(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    tokens: list[int] = answer.json()["choices"][0]["token_ids"]
    return tokens


def model(cluster: Cluster, name: str) -> dict[str, Any]:
    """A model as an admin sees it; empty: it is gone."""
    answer = httpx.get(f"{cluster.url}/admin/v1/models", timeout=30)
    if answer.status_code in (503, 504):  # engines that start leave the router little time here
        return {"state": "unknown"}
    found = answer.raise_for_status().json()["models"]
    return next((one for one in found if one["name"] == name), {})


def test_clients_of_a_model_on_its_way_wait_for_its_engines(
    cluster: Cluster, directories: dict[str, Path], alone: dict[str, list[list[int]]]
) -> None:
    """The third model gets the place of the second one: nobody fails, and nothing takes time beside the start
    of the engine."""
    entry = {"name": "third", "source": f"dir:{directories['third']}", "disaggregated": False}
    entry |= {"replicas": {"decode": 1}, "swap": "second", "wait": False}
    httpx.post(f"{cluster.url}/admin/v1/models", json=entry, timeout=10).raise_for_status()
    _until(lambda: ask_for_card(cluster, "third").status_code == 200, "third takes requests")
    with ThreadPoolExecutor(CLIENTS + 2) as threads:
        waiting = [
            threads.submit(ask_and_look, cluster, "third", number % len(PROMPTS)) for number in range(CLIENTS)
        ]
        other = [threads.submit(ask, cluster, "first", number) for number in range(2)]
        _until(lambda: model(cluster, "third")["state"] == "ready", "third is ready")
        ready_at = time.monotonic()
        answers = [one.result() for one in waiting]
        assert [tokens_of(one.result()) for one in other] == alone["first"][:2]
    assert [tokens_of(answer) for answer, _ in answers] == [
        alone["third"][number % len(PROMPTS)] for number in range(CLIENTS)
    ]
    assert max(ended_at for _, ended_at in answers) - ready_at < _AFTER_READY_SECONDS
    _until(lambda: model(cluster, "second") == {}, "second is gone")
    assert ask(cluster, "second", 0).status_code == 404
    names = {role["name"] for role in cluster.state()["roles"] if role["model"]}
    assert names == {"first-prefill-0", "first-decode-0", "third-aggregated-0"}


def ask_and_look(cluster: Cluster, name: str, number: int) -> tuple[httpx.Response, float]:
    answer = ask(cluster, name, number)
    return answer, time.monotonic()


def ask_for_card(cluster: Cluster, name: str) -> httpx.Response:
    return httpx.get(f"{cluster.url}/v1/models/{name}", timeout=10)


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within five minutes"
        time.sleep(0.1)
