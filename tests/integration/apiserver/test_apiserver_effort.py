"""`reasoning_effort` as a limit of thinking, where the model has marks for it."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from llmserve.apiserver.engine.thinking import ThinkingBudgets
from tests.integration.apiserver.manifests import manifest_of

MESSAGES = [{"role": "user", "content": "abc"}]
CHAT = {"model": "tiny", "messages": MESSAGES, "max_tokens": 4}
TEMPLATE_WITH_EFFORT = "{{ reasoning_effort }}{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="session")
def tiny_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with marks of thinking."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("thinks") / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    return manifest_of(
        engine={"reasoning_parser": "qwen3"}, api={"thinking_budgets": {"low": 7, "max": 9000}}
    )


def budgets(cluster: Any) -> list[int | None]:
    """Those that the decode worker was told."""
    params = [msgspec.msgpack.decode(one.sampling_params) for one in cluster.decode.seen.values()]
    return [one.get("thinking_token_budget") for one in params]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "reasoning_effort": "low"}),
        ("/v1/responses", {"model": "tiny", "input": "abc", "reasoning": {"effort": "low"}}),
        ("/v1/messages", {**CHAT, "output_config": {"effort": "low"}}),
        ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": {"reasoning_effort": "low"}}),
    ],
)
async def test_an_effort_limits_thinking(
    cluster: Any, http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert budgets(cluster) == [7]


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({}, None),
        ({"reasoning_effort": "high"}, None),
        ({"reasoning_effort": "none"}, None),
        ({"reasoning_effort": "max"}, 9000),
        ({"reasoning_effort": "low", "thinking_token_budget": 5}, 5),
        ({"reasoning_effort": "low", "thinking_token_budget": 0}, 0),
    ],
)
async def test_what_the_request_and_the_manifest_say_counts(
    cluster: Any, http: httpx.AsyncClient, fields: dict[str, Any], budget: int | None
) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, **fields})
    assert answer.status_code == 200, answer.text
    assert budgets(cluster) == [budget]


async def test_an_effort_that_is_none_is_refused(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, "reasoning_effort": "much"})
    assert (answer.status_code, "reasoning_effort" in answer.text) == (400, True)


async def test_a_model_that_is_told_the_effort_or_has_no_marks_has_no_budgets(cluster: Any) -> None:
    import copy

    config = cluster.apiserver.models.first.client.vllm_config
    assert ThinkingBudgets.of({"low": 7}, config, "{{ messages }}").tokens == {"low": 7}
    assert ThinkingBudgets.of({"low": 7}, config, TEMPLATE_WITH_EFFORT).tokens == {}
    without = copy.copy(config)
    without.reasoning_config = None
    assert ThinkingBudgets.of({"low": 7}, without, "{{ messages }}").tokens == {}


@pytest.mark.parametrize("effort", [["low"], {"low": 1}])
async def test_an_effort_that_is_no_word_is_left_to_the_template(
    http: httpx.AsyncClient, effort: Any
) -> None:
    answer = await http.post(
        "/v1/chat/completions", json={**CHAT, "chat_template_kwargs": {"reasoning_effort": effort}}
    )
    assert answer.status_code == 200, answer.text
