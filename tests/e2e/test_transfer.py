"""The transfer engine under a real cluster: faults that no user sees, and each order of transports alone.

Each case starts a cluster of its own, beside the one of the session, which is idle.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from bench.cluster import Cluster, running

MODEL = "SmolLM2-135M-Instruct"
REQUESTS = 200
OUTPUT_TOKENS = 6


@contextmanager
def _cluster(manifest: dict[str, Any], **transfer: Any) -> Iterator[Cluster]:
    changed = copy.deepcopy(manifest)
    changed["spec"]["transfer"] = {**changed["spec"].get("transfer", {}), **transfer}
    with running(changed) as started:
        yield started


def _ask(cluster: Cluster, case: dict[str, Any], salt: str) -> httpx.Response:
    body = {
        "model": MODEL,
        "prompt": case["prompt"],
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "cache_salt": salt,  # no request finds another's blocks: each has its own hand-over
    }
    return httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=120)


def _short(cases: list[dict[str, Any]], count: int) -> list[int]:
    """The numbers of the shortest ones."""
    return sorted(range(len(cases)), key=lambda number: len(cases[number]["prompt"]))[:count]


def _pairs(cluster: Cluster, name: str) -> dict[str, float]:
    """kv_pair_NAME of the decode worker, by transport."""
    samples = cluster.metrics("decode-0")
    prefix = f"kv_pair_{name}{{"
    return {
        key.split('transport="')[1][:-2]: value for key, value in samples.items() if key.startswith(prefix)
    }


def _told(answers: list[httpx.Response]) -> set[str]:
    """What the responses say brought their KV."""
    return {answer.headers["x-llmserve-transport"] for answer in answers}


def test_one_transfer_in_sixteen_fails_and_nobody_notices(
    manifest: dict[str, Any],
    parity_cases: list[dict[str, Any]],
    reference: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Failing at submit, failing when polled, and wrong bytes; then the best transport goes for good. One
    after the other: in a batch the numbers of bfloat16 come out otherwise than in the reference. So they
    do in a prompt that is computed again; tcp, which works, is there to make that needless."""
    plan = "fail_submit=1/48, fail_poll=1/48, corrupt=1/48"
    monkeypatch.setenv("LLMSERVE_FAULTS", f"nixl: {plan}, drop_peer=1/1 after 120; shm: {plan}, seed=5")
    numbers = _short(parity_cases, 20)
    with _cluster(manifest, engine_order=["nixl"], verify="always") as cluster:
        jobs = [(number, f"{turn}") for turn in range(REQUESTS // len(numbers)) for number in numbers]
        answers = [_ask(cluster, parity_cases[number], salt) for number, salt in jobs]
        after = cluster.metrics("decode-0")
        failures, moved = _pairs(cluster, "failures_total"), _pairs(cluster, "transfers_total")
        ledger = cluster.metrics("kvmanager-0")
    assert [answer.status_code for answer in answers] == [200] * REQUESTS
    tokens = [answer.json()["choices"][0]["token_ids"] for answer in answers]
    assert tokens == [reference[number][:OUTPUT_TOKENS] for number, _ in jobs]
    assert failures["nixl"] > 0
    assert min(moved["nixl"], moved["shm"]) > 0, "nixl was used, and then another"
    fallbacks = [
        answer.headers["x-llmserve-fallback"] for answer in answers if "x-llmserve-fallback" in answer.headers
    ]
    assert any("injected" in text for text in fallbacks)
    assert _told(answers) >= {"nixl", "shm"}
    assert after["kv_orphan_blocks"] == after["kv_leased_blocks"] == 0
    assert ledger["kv_orphan_blocks"] == ledger["kv_open_leases"] == 0


@pytest.mark.parametrize(("order", "used"), [(["ucx"], "ucx"), (["nccl"], "gloo"), ([], "shm")])
def test_each_order_serves_with_parity(
    manifest: dict[str, Any],
    parity_cases: list[dict[str, Any]],
    reference: list[list[int]],
    order: list[str],
    used: str,
) -> None:
    numbers = _short(parity_cases, 12)
    with _cluster(manifest, engine_order=order, slow_factor=1000.0) as cluster:
        answers = [_ask(cluster, parity_cases[number], "0") for number in numbers]
        moved = _pairs(cluster, "transfers_total")
    assert [a.json()["choices"][0]["token_ids"] for a in answers] == [
        reference[number][:OUTPUT_TOKENS] for number in numbers
    ]
    assert {name for name, count in moved.items() if count} == {used}
    assert _told(answers) == {used}
    assert not any("x-llmserve-fallback" in answer.headers for answer in answers)
