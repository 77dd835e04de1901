"""The engines of a fresh cluster, and its first requests of each kind: none makes an engine stand still.

First of all e2e tests, by its name: afterwards the cluster is no longer fresh. vLLM may prepare something
when a request first needs it (code, a table of tokens); whoever streams beside it would wait.
"""

import math
import os
import re
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.cluster import Cluster
from llmserve.core.process import descendants

LONGEST_STEP_SECONDS = 2.0
MODEL = "SmolLM2-135M-Instruct"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
TOOLS = [{"type": "function", "function": {"name": "call", "parameters": SCHEMA}}]
NAMED_TOOL = {"type": "function", "function": {"name": "call"}}
PENALTIES = {"presence_penalty": 0.2, "frequency_penalty": 0.2, "repetition_penalty": 1.1}

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1},
    "seed": {"temperature": 1, "seed": 3},
    "top_p": {"temperature": 1, "top_p": 0.5},
    "top_k": {"temperature": 1, "top_k": 5},
    "top_k and seed": {"temperature": 1, "top_k": 5, "seed": 1},
    "min_p": {"temperature": 1, "min_p": 0.1},
    "presence": {"presence_penalty": 1},
    "frequency": {"frequency_penalty": 1},
    "repetition": {"repetition_penalty": 1.3},
    "penalties, sampled": {"temperature": 1, **PENALTIES},
    "logprobs": {"logprobs": True},
    "logprobs of five": {"logprobs": True, "top_logprobs": 5},
    "logprobs of twenty, sampled": {"logprobs": True, "top_logprobs": 20, "temperature": 1},
    "logprobs of choices": {"logprobs": True, "top_logprobs": 2, "n": 3, "temperature": 1},
    "prompt logprobs": {"prompt_logprobs": 0},
    "prompt logprobs of three": {"prompt_logprobs": 3},
    "logit bias": {"logit_bias": {"100": 50}},
    "bad words": {"bad_words": ["the", "a b"]},
    "allowed tokens": {"allowed_token_ids": [100, 200, 300]},
    "min_tokens": {"min_tokens": 5},
    "stop": {"stop": ["e"]},
    "stop tokens": {"stop_token_ids": [5]},
    "ignore_eos": {"ignore_eos": True},
    "choices": {"n": 3, "temperature": 1},
    "choices and seed": {"n": 3, "temperature": 1, "seed": 2},
    "JSON": {"response_format": {"type": "json_object"}},
    "JSON schema": {"response_format": JSON_SCHEMA},
    "JSON schema, sampled": {"response_format": JSON_SCHEMA, "temperature": 1},
    "JSON schema and logprobs": {"response_format": JSON_SCHEMA, "logprobs": True},
    "regex": {"structured_outputs": {"regex": "[a-z]{3,9}"}},
    "choice": {"structured_outputs": {"choice": ["yes", "no"]}},
    "grammar": {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}},
    "tools": {"tools": TOOLS},
    "a tool is required": {"tools": TOOLS, "tool_choice": "required"},
    "a named tool": {"tools": TOOLS, "tool_choice": NAMED_TOOL},
    "priority": {"priority": 1},
    "a long prompt": {"messages": [{"role": "user", "content": "word " * 300}]},
    "a long prompt, logprobs": {"messages": [{"role": "user", "content": "word " * 300}], "logprobs": True},
    "everything": {
        **PENALTIES,
        **{"temperature": 1, "seed": 4, "top_p": 0.9, "top_k": 50, "min_p": 0.05, "min_tokens": 2},
        **{"logprobs": True, "top_logprobs": 2, "logit_bias": {"50": 1}, "bad_words": ["x"]},
    },
}


@pytest.mark.parametrize("name", ["prefill-0", "decode-0"])
def test_an_engine_computes_on_its_cores_in_a_fork_of_its_worker(cluster: Cluster, name: str) -> None:
    """The kernel describes each program that it starts in `auxv`, with random addresses. A fork has its
    parent's."""
    worker = cluster.pid(name)
    (engine,) = descendants(worker)
    assert Path(f"/proc/{engine}/auxv").read_bytes() == Path(f"/proc/{worker}/auxv").read_bytes()
    assert Path(f"/proc/{engine}/comm").read_text() == "VLLM::EngineCor\n"
    assert os.sched_getaffinity(engine) == {cluster.role(name)["cores"][0]}
    assert os.sched_getaffinity(worker) == os.sched_getaffinity(0)


def test_no_kind_of_request_makes_an_engine_stand_still(cluster: Cluster) -> None:
    assert len(KINDS) >= 40
    with httpx.Client(base_url=cluster.url, timeout=120) as client, streaming(cluster.url) as gaps:
        for name, parameters in KINDS.items():
            answer = client.post("/v1/chat/completions", json=body(parameters))
            assert answer.status_code == 200, (name, answer.text)
            limit = longest_step_seconds(gaps)
            assert max(gaps) < limit, f"{name}: the other stream waited for {max(gaps):.1f} s"
        limit = longest_step_seconds(gaps)
    assert slow_prefills(cluster.metrics("prefill-0"), limit) == 0


def longest_step_seconds(gaps: list[float]) -> float:
    """More on a machine that has much else to do, as the usual step shows."""
    return max(LONGEST_STEP_SECONDS, 10 * statistics.median(gaps))


def body(parameters: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Say something."}]
    return {"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0, **parameters}


@contextmanager
def streaming(url: str) -> Iterator[list[float]]:
    """One answer after another, meanwhile; yields the seconds between the tokens of each, so far."""
    gaps, stop = [0.0], threading.Event()

    def stream() -> None:
        while not stop.is_set():
            request = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True}
            with httpx.stream(
                "POST", f"{url}/v1/completions", json={**request, "stream": True}, timeout=120
            ) as answer:
                last = None
                for _ in filter(None, answer.iter_lines()):
                    now = time.monotonic()
                    gaps.append(0.0 if last is None else now - last)
                    last = now
                    if stop.is_set():
                        return

    thread = threading.Thread(target=stream, name="stream")
    thread.start()
    try:
        yield gaps
    finally:
        stop.set()
        thread.join(120)
    assert len(gaps) > 100, "the other stream did not run"


def slow_prefills(samples: dict[str, float], limit: float) -> float:
    """Returns how many prompts took the engine longer than a step may, by vLLM's histogram (the next bucket).
    samples: of its worker's metrics."""
    found = (
        (re.search(r'vllm:request_prefill_time_seconds_bucket\{.*le="([^"]+)"', key), value)
        for key, value in samples.items()
    )
    counts = {float(match[1]): value for match, value in found if match}
    assert counts[math.inf] > 0, "no prompt was computed there"
    return counts[math.inf] - counts[min(bound for bound in counts if bound >= limit)]
