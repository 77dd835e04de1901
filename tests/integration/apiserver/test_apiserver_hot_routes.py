"""The hot routes answer as the application itself does, and chats as vLLM's own: byte for byte.

A second content type changes nothing in a request, but makes it none for the hot routes. What may differ
between two answers to the same request (ids, times, how many tokens an event has) is made alike before.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi.exceptions import RequestValidationError

from llmserve.apiserver.http import app
from llmserve.apiserver.http.errors import ApiError
from llmserve.apiserver.http.wrong_body import wrong_body
from llmserve.config.schema import Manifest
from llmserve.core.adapters import NamedAdapter
from llmserve.core.ids import AdapterDigest
from tests.support.any_request import VALID

USER = [{"role": "user", "content": "hello"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": USER, "max_tokens": 24}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 24}
USAGE = {"stream_options": {"include_usage": True}}
CONTINUOUS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
# What a model may say: all that JSON escapes, text of several bytes, and bytes that are no text.
TEXT = '"\\/\b\f\n\r\t\x01\x1f\x7f<é€𝄞\u2028 und so weiter'.encode() + b"\xff\xfe" + b'}],"text":"x'

BOTH: list[dict[str, Any]] = [
    {},
    {"max_tokens": 1},
    {"n": 2},
    {"stop": ["so"]},
    {"stop": ["und", "x"], "include_stop_str_in_output": True},
    {"stop_token_ids": [40]},
    {"seed": 1, "temperature": 0.5, "presence_penalty": 1},
    {"ignore_eos": True, "min_tokens": 3},
    {"return_token_ids": True},
    {"echo": True},
    {"max_tokens": 10_000},
    {"max_tokens": -1},
    {"temperature": "hot"},
    {"stream_options": {"include_usage": True}, "stream": False},
    {"model": "other"},
    {"user": "u", "an_extra_field": 1},
    {"logit_bias": {"5": 1}},
    {"priority": 1, "request_id": "mine"},
    {"cache_salt": "a", "skip_special_tokens": False},
    {"model": "sql"},
    {"model": "sql", "max_tokens": -1},
    {"lora_path": "sql"},
    {"lora_path": "none"},
    {"lora_path": ["sql"]},
    {"model": "sql", "lora_path": "dir:/adapters/any"},
]
STREAMED: list[dict[str, Any]] = [USAGE, CONTINUOUS, {"n": 2, **USAGE}, {"stop": ["so"], **USAGE}]
CHATS: list[dict[str, Any]] = [
    {"logprobs": True, "top_logprobs": 2},
    {"messages": []},
    {"messages": "hello"},
    {"messages": [{"role": "user"}]},
    {"messages": [*USER, {"role": "assistant", "content": "begun"}], "continue_final_message": True},
    {"tools": [TOOL], "tool_choice": "none"},
    {"tools": [TOOL], "tool_choice": "auto"},
    {"return_prompt_text": True},
    {"response_format": {"type": "text"}},
    {"max_completion_tokens": 3},
    {"chat_template": "{{ 1 }}"},
    {"add_generation_prompt": False, "echo": True},
]
COMPLETIONS: list[dict[str, Any]] = [
    {"logprobs": 2},
    {"prompt": [3, 4, 5]},
    {"prompt": ["a", "b"]},
    {"prompt": ""},
    {"prompt": [[]]},
    {"suffix": "x"},
    {"echo": True, "max_tokens": 0},
    {"prompt_logprobs": 1},
]
# Fields for which a process that compiles grammars would have to start, which takes its time.
_GRAMMARS = {"structured_outputs", "response_format", "text"}
# Routes whose good answers are vLLM's as they are.
VLLM_S = ("/v1/chat/completions", "/v1/completions")
BROKEN = [b"", b"{", b"[]", b"null", b'"x"', b'{"model": "tiny"}', b'{"stream": 1e999}', b"\xef\xbb\xbf{}"]


def corpus() -> Iterator[tuple[str, bytes]]:
    for path, base, more in (
        ("/v1/chat/completions", CHAT, CHATS),
        ("/v1/completions", COMPLETION, COMPLETIONS),
    ):
        for fields in (*BOTH, *more):
            for stream in (False, True):
                yield path, json.dumps({**base, "stream": stream, **fields}).encode()
        for fields in STREAMED:
            yield path, json.dumps({**base, "stream": True, **fields}).encode()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"):
        for body in VALID[path]:
            if not _GRAMMARS.intersection(body):
                yield path, json.dumps(body).encode()
        for raw in BROKEN:
            yield path, raw


@pytest_asyncio.fixture
async def vllm_s(
    cluster: Any, tiny_model: Path, manifest: dict[str, Any]
) -> AsyncIterator[httpx.AsyncClient]:
    """vLLM's own application on the same engine client, with nothing of ours around it."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    from llmserve.apiserver.http.app import serving_args
    from llmserve.apiserver.options import ModelDirectory

    client, read = cluster.apiserver.models.first.client, Manifest.model_validate(manifest)
    args = serving_args(ModelDirectory("tiny", tiny_model), read.engine, read.api)
    plain = build_app(args, client.tasks, client.model_config)
    await init_app_state(client, plain.state, args, client.tasks)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(plain), base_url="http://vllm") as made:
        yield made


async def ask(client: httpx.AsyncClient, path: str, body: bytes, *kinds: str) -> httpx.Response:
    headers = [("x-request-id", "same"), *(("content-type", kind) for kind in kinds)]
    return await client.post(path, content=body, headers=headers)


_RANDOM = re.compile(r"[0-9a-f]{16,32}")
_TIMES = re.compile(r'"(created|created_at|completed_at)": ?[0-9.]+')
_OUR_COMMENTS = re.compile(r"^: .*\n\n?", re.MULTILINE)


def alike(response: httpx.Response) -> tuple[int, str, list[str]]:
    """Returns status, type, and the body without what may differ: for a stream its events."""
    text = _OUR_COMMENTS.sub("", _TIMES.sub('"created":0', _RANDOM.sub("ID", response.text)))
    kind = response.headers.get("content-type", "")
    return response.status_code, kind, list(joined(text.split("\n\n"))) if "event-stream" in kind else [text]


_CHOICE = re.compile(r'"choices":\[{"index":(\d)')
_TEXT = re.compile(r'("delta":{"content":|"text":)("(?:[^"\\]|\\.)*")')


def joined(events: list[str]) -> Iterator[str]:
    """Yields the events of each choice without their text, which may be divided among them in any way, and
    then their text as one. Those in a row that differ only in it are one."""
    by_choice = sorted(filter(None, events), key=lambda event: (_CHOICE.findall(event) or ["~"])[0])
    for choice, same in groupby(by_choice, key=lambda event: _CHOICE.findall(event)):
        events = list(same)
        yield from (frame for frame, _ in groupby(_TEXT.sub(r"\1", event) for event in events))
        yield f"{choice}: {''.join(text[2][1:-1] for event in events for text in _TEXT.finditer(event))}"


async def test_all_requests_are_answered_as_the_application_answers_them(
    http: httpx.AsyncClient, vllm_s: httpx.AsyncClient, cluster: Any
) -> None:
    cluster.prefill.text = cluster.decode.text = TEXT
    await cluster.named(NamedAdapter("sql", AdapterDigest("1" * 64), "tiny"))
    compared: dict[int, int] = {}
    for path, body in corpus():
        hot = await ask(http, path, body, "application/json")
        cold = await ask(http, path, body, "application/json", "application/json")
        assert alike(hot) == alike(cold), (path, body, hot.text, cold.text)
        assert names_of(hot.headers) == names_of(cold.headers), (path, body)
        if hot.status_code == 200 and path in VLLM_S and '"error"' not in hot.text and no_adapter(body):
            assert alike(hot) == alike(await ask(vllm_s, path, body, "application/json")), (path, body)
        compared[hot.status_code] = compared.get(hot.status_code, 0) + 1
    assert compared[200] > 50, compared
    assert compared[400] > 20, compared


def no_adapter(body: bytes) -> bool:
    return b"lora_path" not in body and b'"model": "sql"' not in body


def names_of(headers: Mapping[str, str]) -> list[str]:
    return sorted(name for name in headers if not name.startswith("x-llmserve-"))


@pytest.mark.parametrize("kind", ["text/plain", "application/json; charset=utf-8", "Application/JSON", ""])
async def test_the_type_of_the_body(http: httpx.AsyncClient, kind: str) -> None:
    body = json.dumps(CHAT).encode()
    hot = await ask(http, "/v1/chat/completions", body, *([kind] if kind else []))
    cold = await ask(http, "/v1/chat/completions", body, *([kind] if kind else []), "x/y")
    assert alike(hot) == alike(cold)
    assert hot.status_code == (200 if "json" in kind.lower() else 400)


MANY_WRONG: list[tuple[str, dict[str, Any]]] = [
    ("/v1/responses", {"input": [{"role": "user", "content": 5}] * 500}),
    ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "x"}] * 500}]}),
    ("/v1/responses", {"input": "x", "metadata": {str(key): key for key in range(1000)}}),
    ("/v1/chat/completions", {"messages": [{}] * 500}),
    ("/v1/completions", {"prompt": [1, *[None] * 500]}),
    ("/v1/messages", {"messages": [{}] * 500, "max_tokens": 1}),
    ("/tokenize", {"messages": [{}] * 500}),
]


@pytest.mark.parametrize(("path", "body"), MANY_WRONG)
@pytest.mark.parametrize("kinds", [1, 2], ids=["hot", "cold"])
async def test_the_errors_of_a_wrong_body_do_not_grow_with_it(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], kinds: int
) -> None:
    counts: list[int] = []

    def counted(error: RequestValidationError) -> ApiError:
        counts.append(len(error.errors()))
        return wrong_body(error)

    monkeypatch.setattr(app, "wrong_body", counted)
    answer = await ask(http, path, json.dumps(body).encode(), *["application/json"] * kinds)
    assert answer.status_code == 400
    assert len(counts) == 1
    assert counts[0] < 300  # those of one entry: its classes are many
