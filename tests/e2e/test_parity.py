"""The cluster gives the tokens of one engine, and decode computes none of the prompt again."""

from typing import Any

import httpx

from bench.cluster import Cluster

MODEL = "SmolLM2-135M-Instruct"


def _tokens(http: httpx.Client, case: dict[str, Any]) -> list[int]:
    body = {
        "model": MODEL,
        "prompt": case["prompt"],
        "max_tokens": case["max_tokens"],
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    answer = http.post("/v1/completions", json=body)
    answer.raise_for_status()
    token_ids: list[int] = answer.json()["choices"][0]["token_ids"]
    return token_ids


def test_greedy_outputs_equal_those_of_one_engine(
    http: httpx.Client,
    cluster: Cluster,
    parity_cases: list[dict[str, Any]],
    reference: list[list[int]],
) -> None:
    before = cluster.metrics("decode-0")
    answers = [_tokens(http, case) for case in parity_cases]
    after = cluster.metrics("decode-0")

    different = [
        number for number, pair in enumerate(zip(answers, reference, strict=True)) if pair[0] != pair[1]
    ]
    assert not different, [(answers[n], reference[n], len(parity_cases[n]["prompt"])) for n in different]

    def grown(source: str) -> float:
        name = f'worker_prompt_tokens_total{{source="{source}"}}'
        return after[name] - before.get(name, 0.0)  # there is none before the first request

    prompt_tokens = sum(len(case["prompt"]) for case in parity_cases)
    # Decode's prompt is the user's and the token that prefill drew; only that one is computed there.
    assert grown("external") + grown("local") == prompt_tokens
    assert grown("external") >= 0.9 * prompt_tokens
    assert grown("computed") == len(parity_cases)
    assert after["kv_transfer_failures_total"] == before["kv_transfer_failures_total"]

    # What vLLM counts is passed on, and is what we count.
    theirs = f'vllm:generation_tokens_total{{engine="0",model_name="{MODEL}"}}'
    ours = "worker_output_tokens_total"
    assert after[theirs] - before[theirs] == after[ours] - before[ours] > 0
