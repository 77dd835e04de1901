"""A cluster whose engines speculate, on a real model in float32 that is its own draft: what clients get is
what the model alone says. Like test_store.py, after the cluster of the other files has gone."""

import copy
import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.cluster import Cluster, running
from tests.support.tiny_hybrid import greedy_answers

MODEL = "SmolLM2-135M-Instruct"
PROMPT_TOKENS, ANSWER = 150, 60
PROMPTS = [[300 + 7 * n * n % 20_000 for n in range(first, first + PROMPT_TOKENS)] for first in (0, 500)]


@pytest.fixture(scope="module")
def alone(model_dir: str) -> list[list[int]]:
    return greedy_answers(Path(model_dir), PROMPTS, ANSWER)


@pytest.fixture(scope="module")
def speculating(
    manifest: dict[str, Any], alone: list[list[int]], before_the_store: ExitStack
) -> Iterator[Cluster]:
    before_the_store.close()
    own = copy.deepcopy(manifest)
    spec = own["spec"]
    del spec["lora"]
    spec["models"]["draft"] = {"source": spec["models"]["primary"]["source"]}
    spec["engine"] |= {"dtype": "float32", "speculative_tokens": 3, "max_model_len": 512}
    spec["engine"]["speculation"] = {"adaptive": False}  # as costly as the model, the draft never pays
    spec["deployment"]["replicas"] = {"prefill": 1, "decode": 2}
    with running(own) as cluster:
        yield cluster


def _body(prompt: list[int], **more: Any) -> dict[str, Any]:
    fixed = {"model": MODEL, "prompt": prompt, "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True}
    return {**fixed, "return_token_ids": True, **more}


def _post(cluster: Cluster, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=120)


def _explained(cluster: Cluster, request_id: str) -> dict[str, Any]:
    response = httpx.get(f"{cluster.url}/v1/requests/{request_id}/explain", timeout=30)
    response.raise_for_status()
    (sequence,) = response.json()["sequences"]
    found: dict[str, Any] = sequence
    return found


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_an_answer_is_that_of_the_model_and_its_draft_was_right(
    speculating: Cluster, alone: list[list[int]], number: int
) -> None:
    answer = _post(speculating, _body(PROMPTS[number])).json()
    assert answer["choices"][0]["token_ids"] == alone[number]
    assert answer["usage"]["completion_tokens"] == ANSWER
    explained = _explained(speculating, answer["id"])
    assert explained["handovers"][0]["mode"] in ("pull", "push")
    assert explained["speculation"]["acceptance"] >= 0.95
    assert explained["speculation"]["tokens_per_step"] > 3


@pytest.mark.parametrize("field", [{"min_p": 0.1, "temperature": 1.0}, {"logit_bias": {"5": 1}}])
def test_what_engines_would_ignore_is_refused(speculating: Cluster, field: dict[str, Any]) -> None:
    response = _post(speculating, _body(PROMPTS[0], **field))
    assert response.status_code == 400
    assert "speculative decoding" in response.json()["error"]["message"]


def test_choices_and_grammars(speculating: Cluster, alone: list[list[int]]) -> None:
    """Sampling among one token is greedy, and goes the way of sampled tokens through verification."""
    several = _post(speculating, _body(PROMPTS[0], n=2, temperature=1.0, top_k=1)).json()
    assert [one["token_ids"] for one in several["choices"]] == [alone[0]] * 2
    chosen = {"choice": ["a red rose", "a blue bell"]}
    answer = _post(speculating, _body(PROMPTS[0], structured_outputs=chosen, ignore_eos=False)).json()
    assert answer["choices"][0]["text"] in chosen["choice"]


def test_a_stream_goes_on_when_its_decode_worker_is_killed(
    speculating: Cluster, alone: list[list[int]]
) -> None:
    """The last test. Other tokens than those that the user has would end the stream."""
    headers = {"x-request-id": "killed-1"}
    got: list[int] = []
    with httpx.stream(
        "POST",
        f"{speculating.url}/v1/completions",
        json=_body(PROMPTS[1], stream=True),
        headers=headers,
        timeout=120,
    ) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            if event["choices"]:
                before, got = len(got), [*got, *event["choices"][0]["token_ids"]]
                if before < 10 <= len(got):
                    (attempt,) = _explained(speculating, "killed-1")["attempts"]
                    os.kill(speculating.pid(attempt["decode"]), signal.SIGKILL)
    assert got == alone[1]
    assert len(_explained(speculating, "killed-1")["attempts"]) == 2
