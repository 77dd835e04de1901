"""Driving a scripted HTTP server: planned times, users, failures of every kind."""

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from llmserve.core.errors import LLMServeError, NotAuthenticated, Unavailable
from llmserve.loadgen.answer import AnswerFailure
from llmserve.loadgen.drive import Drive, Stopwatch, Ways, run_load
from llmserve.loadgen.endpoint import Endpoint, EndpointTarget, base_url, listed_adapters, only_model, probe
from llmserve.loadgen.load import Load, Users
from llmserve.loadgen.prompts import WORDS, PromptForm, Texts, TokenTalk
from llmserve.loadgen.workload import Conversation, LoadKind, Mix, PromptPiece, Tenant, Turn
from tests.unit.loadgen.watching import unwatched

TEXTS = Texts(1, (1000, 2000))
Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class Server:
    """An endpoint that does what `answer` says; keeps what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answer: Handler = said

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append({**body, "path": request.path})
        self.keys.append(request.headers.get("Authorization"))
        return await self.answer(request, body)

    def target(self, **changes: Any) -> EndpointTarget:
        return EndpointTarget(self.url, "m", {"a": "key-a"}, **{"timeout_seconds": 30.0, **changes})


async def said(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """max_tokens tokens, with ids."""
    events: list[dict[str, Any]] = [
        {"choices": [{"text": "x", "token_ids": [7]}]} for _ in range(body["max_tokens"])
    ]
    prompt = body.get("prompt")
    count = len(prompt) if isinstance(prompt, list) else len(json.dumps(prompt or body["messages"]).split())
    usage = {"prompt_tokens": count, "completion_tokens": body["max_tokens"]}
    return await streamed(request, [*events, {"choices": [], "usage": usage}])


async def streamed(
    request: web.Request, events: list[dict[str, Any]], *, done: bool = True
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    if done:
        await response.write(b"data: [DONE]\n\n")
    return response


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one = Server()
    app = web.Application()
    app.router.add_post("/v1/completions", one.handle)
    app.router.add_post("/v1/chat/completions", one.handle)
    app.router.add_get("/v1/models", _models)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield one
    await runner.cleanup()


async def _models(request: web.Request) -> web.Response:
    if request.headers.get("Authorization") == "Bearer wrong":
        return web.json_response({"error": {"message": "no such key"}}, status=401)
    adapters = [{"id": name, "parent": "served"} for name in ("sql", "chat")]
    return web.json_response({"data": [{"id": "served", "parent": None}, *adapters]})


def conversation(index: int, starts_at: float = 0.0, turns: int = 1, tenant: str = "a") -> Conversation:
    made = tuple(Turn((PromptPiece(f"{index}.{number}", 5),), 3) for number in range(turns))
    return Conversation(index, "k", tenant, made, starts_at)


def endless() -> Iterator[Conversation]:
    return map(conversation, itertools.count())


async def drive(
    server: Server, load: Callable[[Drive], Awaitable[None]], watch: Stopwatch | None = None, **target: Any
) -> Drive:
    async with Endpoint(server.target(**target)) as endpoint:
        one = Drive(endpoint, lambda: TokenTalk(TEXTS), watch=watch or Stopwatch())
        await load(one)
    return one


async def test_a_request_is_as_planned_and_its_record_as_answered(server: Server) -> None:
    done = await drive(
        server, lambda one: one.open_loop([conversation(0)]), extra={"temperature": 0, "n": None}
    )
    (asked,), (record,) = server.asked, done.records
    assert asked["prompt"] == TEXTS.ids(PromptPiece("0.0", 5))
    assert (asked["max_tokens"], asked["stream"], asked["temperature"]) == (3, True, 0)
    assert "n" not in asked
    assert server.keys == ["Bearer key-a"]
    assert (record.prompt_tokens, record.output_tokens, len(record.gaps), record.failure) == (5, 3, 2, None)
    assert 0 <= record.planned_at <= record.sent_at <= record.first_at <= record.last_at <= record.ended_at


async def test_a_tenant_that_has_no_key_of_its_own_sends_the_default_one(server: Server) -> None:
    plan = [conversation(0, tenant="b"), conversation(1, tenant="a")]
    await drive(server, lambda one: one.open_loop(plan), default_key="any")
    assert sorted(filter(None, server.keys)) == ["Bearer any", "Bearer key-a"]


async def test_the_open_loop_does_not_wait_for_answers_and_counts_from_the_plan(server: Server) -> None:
    """The server is stuck until all have come: times count from when each should have left."""
    all_here = asyncio.Event()

    async def stuck(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(server.asked) == 5:
            all_here.set()
        await all_here.wait()
        return await said(request, body)

    server.answer = stuck
    plan = [conversation(index, 0.1 * index) for index in range(5)]
    done = await drive(server, lambda one: one.open_loop(plan))
    records = sorted(done.records, key=lambda one: one.conversation)
    assert [one.planned_at for one in records] == [one.starts_at for one in plan]
    assert min(one.first_at for one in records) >= 0.4
    assert [one.ttft for one in records] == [one.first_at - one.planned_at for one in records]


async def test_a_plan_in_the_past_is_late_not_moved(server: Server) -> None:
    async def late(one: Drive) -> None:
        await asyncio.sleep(0.2)
        await one.open_loop([conversation(0, 0.0)])

    (record,) = (await drive(server, late)).records
    assert record.sent_at - record.planned_at >= 0.2
    assert record.ttft >= 0.2


async def test_the_closed_loop_has_so_many_users_and_so_many_conversations(server: Server) -> None:
    running, most = 0, 0

    async def counted(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return await said(request, body)

    server.answer = counted
    done = await drive(server, lambda one: one.closed_loop([Users(3, endless())], count=10))
    assert (len(done.records), most) == (10, 3)


class WatchOfRequests(Stopwatch):
    """Each request that the server was asked takes a second."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def now(self) -> float:
        return float(len(self._server.asked))


async def test_the_closed_loop_ends_in_time(server: Server) -> None:
    watch = WatchOfRequests(server)
    done = await drive(server, lambda one: one.closed_loop([Users(2, endless())], seconds=10), watch)
    assert len(done.records) in (10, 11), "one user may have begun when the other's request ended the time"


async def test_turns_carry_the_whole_conversation(server: Server) -> None:
    done = await drive(server, lambda one: one.open_loop([conversation(0, turns=3)]))
    first, second, third = (asked["prompt"] for asked in server.asked)
    assert second[: len(first) + 3] == [*first, 7, 7, 7]
    assert third[: len(second)] == second
    assert [one.turn for one in done.records] == [0, 1, 2]
    assert [one.wanted_prompt_tokens for one in done.records] == [len(first), len(second), len(third)]


async def test_a_conversation_ends_with_its_first_failure(server: Server) -> None:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "the queue is full"}}, status=429)

    server.answer = refuse
    done = await drive(server, lambda one: one.open_loop([conversation(0, turns=3)]))
    (record,) = done.records
    assert record.failure is not None
    assert (record.failure.label, record.failure.message) == ("HTTP 429", "the queue is full")
    assert done.failed == 1


async def test_failures_of_every_kind_are_told_apart(server: Server) -> None:
    async def cut(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await streamed(request, [{"choices": [{"text": "x"}]}], done=False)
        assert request.transport is not None
        request.transport.close()
        return response

    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(1)
        return await said(request, body)

    async def wrong(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await streamed(request, [{"error": {"message": "no"}}])

    cases: list[tuple[Handler, AnswerFailure, float]] = [
        (cut, AnswerFailure.BROKEN, 30),
        (slow, AnswerFailure.TIMEOUT, 0.3),
        (wrong, AnswerFailure.IN_STREAM, 30),
    ]
    for answer, kind, seconds in cases:
        server.answer = answer
        done = await drive(server, lambda one: one.open_loop([conversation(0)]), timeout_seconds=seconds)
        failure = done.records[0].failure
        assert failure is not None
        assert failure.kind is kind
    server.url = "http://127.0.0.1:1"
    done = await drive(server, lambda one: one.open_loop([conversation(0)]))
    assert done.records[0].failure is not None
    assert done.records[0].failure.kind is AnswerFailure.CONNECT


async def test_the_probe_takes_the_first_form_that_works(server: Server) -> None:
    async with Endpoint(server.target()) as endpoint:
        probed = await probe(endpoint, "a", None, keeps_talking=True)
        assert (probed.form, probed.notes) == (PromptForm.TOKENS, ())
        assert server.asked[-1]["return_token_ids"] is True

        async def only_chat(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            if "messages" in body:
                return await said(request, body)
            return web.json_response({"detail": "Not Found"}, status=404)

        server.answer = only_chat
        probed = await probe(endpoint, "a", None, keeps_talking=False)
        assert probed.form is PromptForm.CHAT
        assert probed.scale.per_word == pytest.approx(1.0)
        assert "approximate" in probed.notes[0]


async def test_an_endpoint_that_reads_ids_as_text_gets_text(server: Server) -> None:
    async def otherwise(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        prompt = body["prompt"]
        count = 50 if isinstance(prompt, list) else 2 * len(prompt.split()) + 1
        usage = {"prompt_tokens": count, "completion_tokens": 1}
        return await streamed(request, [{"choices": [{"text": "x"}], "usage": usage}])

    server.answer = otherwise
    async with Endpoint(server.target()) as endpoint:
        probed = await probe(endpoint, "a", None, keeps_talking=False)
    assert probed.form is PromptForm.TEXT
    assert (probed.scale.per_word, probed.scale.fixed) == (2.0, 1.0)
    assert len(server.asked[-1]["prompt"].split()) == 2 * len(WORDS)


async def test_a_probe_that_fails_says_why(server: Server) -> None:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": "wrong key"}, status=401)

    server.answer = refuse
    async with Endpoint(server.target()) as endpoint:
        with pytest.raises(NotAuthenticated, match="wrong key"):
            await probe(endpoint, "a", None, keeps_talking=False)
        server.answer = _missing
        with pytest.raises(LLMServeError, match="HTTP 404"):
            await probe(endpoint, "a", PromptForm.TOKENS, keeps_talking=False)
    async with Endpoint(EndpointTarget("http://127.0.0.1:1", "m", {})) as endpoint:
        with pytest.raises(Unavailable, match="no connection"):
            await probe(endpoint, "a", None, keeps_talking=False)


async def _missing(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"error": {"message": "no model m"}}, status=404)


async def test_the_model_is_asked_for(server: Server) -> None:
    assert await only_model(server.url, None) == "served"
    with pytest.raises(Unavailable, match="/v1/models"):
        await only_model("http://127.0.0.1:1", None)
    with pytest.raises(LLMServeError, match="--model"):
        await only_model(f"{server.url}/elsewhere", None)
    with pytest.raises(LLMServeError, match=r"no such key$"):
        await only_model(server.url, "wrong")


async def test_the_adapters_are_the_models_with_a_parent(server: Server) -> None:
    assert await listed_adapters(server.url, None) == ["sql", "chat"]


async def test_each_turn_asks_for_the_adapter_of_its_conversation(server: Server) -> None:
    plan = [replace(conversation(0, turns=2), adapter="sql"), conversation(1)]
    done = await drive(server, lambda one: one.open_loop(plan))
    assert sorted(asked["model"] for asked in server.asked) == ["m", "sql", "sql"]
    assert sorted(record.adapter for record in done.records) == ["", "sql", "sql"]


def test_urls_as_people_write_them() -> None:
    for text in ("http://x:1", "http://x:1/", "http://x:1/v1", "http://x:1/v1/"):
        assert base_url(text) == "http://x:1"


async def test_a_whole_run_warms_up_and_does_not_count_it(server: Server) -> None:
    mix = Mix((LoadKind("k", 20, 4, 1.0),), (Tenant("a", "key-a"),), turns=2)
    load = Load(mix, seed=3, concurrency=2, count=5)
    outcome = await run_load(load, server.target(), Ways(warming=3), unwatched)
    assert len(outcome.records) == 10
    assert len(server.asked) == 2 + 3 + 10
    assert not outcome.is_cut
    assert outcome.about.prompts == "token ids"


async def test_a_run_that_is_stopped_reports_what_has_ended(server: Server) -> None:
    stuck = asyncio.Event()

    async def slow_later(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(server.asked) == 9:
            stuck.set()
        await asyncio.sleep(0.01 if len(server.asked) < 8 else 30)
        return await said(request, body)

    server.answer = slow_later
    mix = Mix((LoadKind("k", 20, 4, 1.0),), (Tenant("a", None),))
    load = Load(mix, seed=random.randrange(99), concurrency=2, seconds=60.0)
    task = asyncio.create_task(run_load(load, server.target(), Ways(warming=0), unwatched))
    await stuck.wait()
    task.cancel()
    outcome = await task
    assert outcome.is_cut
    assert len(outcome.records) >= 4
    assert "the run was stopped early" in outcome.about.notes
