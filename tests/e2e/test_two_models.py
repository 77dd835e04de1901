"""Two small models of random weights that share a tokenizer, side by side on real engines: each answer is
what its model says alone. Like test_store.py, after the cluster of the other files has gone."""

import copy
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.cluster import Cluster, running
from tests.support.tiny_hybrid import greedy_answers
from tests.support.tiny_llama import VOCAB, make_tiny_llama

MODELS = {"first": 1, "second": 2}  # the seeds of their weights
ANSWER = 12
REQUESTS = 200
_RANDOM = random.Random(16)
PROMPTS = [[_RANDOM.randrange(3, VOCAB) for _ in range(length)] for length in (20, 33, 64, 90, 150, 300)]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_tiny_llama(tmp_path_factory.mktemp(name), seed=seed) for name, seed in MODELS.items()}


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
    spec["models"] = [{"name": name, "source": f"dir:{where}"} for name, where in directories.items()]
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

    def ask(case: tuple[str, int]) -> list[int]:
        name, number = case
        body = {"model": name, "prompt": PROMPTS[number], "max_tokens": ANSWER, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        answer = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        tokens: list[int] = answer.json()["choices"][0]["token_ids"]
        return tokens

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, wanted))
    wrong = [case for case, tokens in zip(wanted, answers, strict=True) if tokens != alone[case[0]][case[1]]]
    assert wrong == []
