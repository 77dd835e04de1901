"""`scheduling.disaggregate: auto`, which users get: a short prompt is computed where it is continued."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx

Disaggregating = Callable[[str], AbstractContextManager[None]]
MODEL = "SmolLM2-135M-Instruct"


def _ask(http: httpx.Client, words: str) -> tuple[str, dict[str, Any]]:
    """Its text, and where it was placed."""
    body = {"model": MODEL, "prompt": words, "max_tokens": 12, "temperature": 0}
    answer = http.post("/v1/completions", json=body).raise_for_status().json()
    record = http.get(f"/v1/requests/{answer['id']}/explain").raise_for_status().json()
    attempt: dict[str, Any] = record["sequences"][0]["attempts"][0]
    return str(answer["choices"][0]["text"]), attempt


def test_a_short_prompt_runs_on_one_worker_and_says_the_same(
    disaggregating: Disaggregating, http: httpx.Client
) -> None:
    words = "The capital of France is"
    handed_over, pair = _ask(http, words)
    assert (pair["prefill"], pair["decode"]) == ("prefill-0", "decode-0")
    with disaggregating("auto"):
        alone, one = _ask(http, words)
    assert (one["prefill"], one["decode"]) == (None, "decode-0")
    assert alone == handed_over
    _, again = _ask(http, words)
    assert again["prefill"] == "prefill-0"
