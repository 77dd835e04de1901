"""Clients that go away, workers and routers that are lost: what is aborted, released, counted."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from llmserve.core.errors import EngineDead, InvalidRequest, TransferError
from llmserve.core.request import Outcome
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WORKER_ROLE_DECODE, WORKER_ROLE_PREFILL

REQUEST = {"model": "tiny", "prompt": "abc", "max_tokens": 8}


def expected(cluster: Any, tokens: int = 8) -> str:
    text = cluster.decode.text
    return bytes(text[(3 + i) % len(text)] for i in range(tokens)).decode()


async def post(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await http.post("/v1/completions", json={**REQUEST, **fields})


@asynccontextmanager
async def running(http: httpx.AsyncClient, stream: bool, **fields: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """A request under way. Cancelling the task closes its connection."""

    async def read() -> str:
        body = {**REQUEST, "stream": stream, **fields}
        async with http.stream("POST", "/v1/completions", json=body) as response:
            return (await response.aread()).decode()

    task = asyncio.create_task(read())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def leave(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def pieces(stream: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


# Of a prompt that fills blocks, so that it is prefilled once for all of them.
CHOICES = {"prompt": "x" * 40, "n": 3, "seed": 7}


def choices_text(cluster: Any, tokens: int = 8) -> list[str]:
    text = cluster.decode.text
    return [bytes(text[(40 + i) % len(text)] for i in range(tokens)).decode()] * 3


both_ways = pytest.mark.parametrize("stream", [False, True])


class TestClientLeaves:
    @both_ways
    async def test_before_the_placement(self, cluster: Any, http: httpx.AsyncClient, stream: bool) -> None:
        cluster.router.hold = True
        async with running(http, stream) as task:
            await cluster.router.until(lambda: bool(cluster.router.admits))
            await leave(task)
            await cluster.router.until(lambda: bool(cluster.router.done))
        assert cluster.router.done == [(cluster.router.admits[0].request_id, Outcome.CANCELLED)]
        assert not cluster.prefill.seen
        assert cluster.count("apiserver_requests_total", outcome="cancelled") == 1

    @both_ways
    async def test_during_prefill(self, cluster: Any, http: httpx.AsyncClient, stream: bool) -> None:
        cluster.prefill.pause_at = 0
        async with running(http, stream) as task:
            await cluster.prefill.until(lambda: bool(cluster.prefill.seen))
            await leave(task)
            await cluster.prefill.until(lambda: bool(cluster.prefill.aborted))
        assert not cluster.decode.seen
        await cluster.router.until(lambda: bool(cluster.router.done))
        assert [outcome for _, outcome in cluster.router.done] == [Outcome.CANCELLED]

    @both_ways
    async def test_between_prefill_and_decode_s_first_token(
        self, cluster: Any, http: httpx.AsyncClient, stream: bool
    ) -> None:
        cluster.decode.pause_at = 0
        async with running(http, stream) as task:
            await cluster.decode.until(lambda: bool(cluster.decode.seen))
            await leave(task)
            await cluster.decode.until(lambda: bool(cluster.decode.aborted))
            await cluster.prefill.until(lambda: bool(cluster.prefill.released))
        assert cluster.prefill.released == list(cluster.prefill.seen)
        await cluster.router.until(lambda: bool(cluster.router.done))
        assert [outcome for _, outcome in cluster.router.done] == [Outcome.CANCELLED]

    @both_ways
    async def test_during_decode(self, cluster: Any, http: httpx.AsyncClient, stream: bool) -> None:
        cluster.decode.pause_at = 2
        async with running(http, stream) as task:
            await cluster.decode.until(lambda: bool(cluster.decode.seen))
            await cluster.router.until(lambda: bool(cluster.router.first_tokens))
            await leave(task)
            await cluster.decode.until(lambda: bool(cluster.decode.aborted))
        await cluster.router.until(lambda: bool(cluster.router.done))
        assert [outcome for _, outcome in cluster.router.done] == [Outcome.CANCELLED]
        assert cluster.count("apiserver_requests_total", outcome="cancelled") == 1

    async def test_all_choices_end(self, cluster: Any, http: httpx.AsyncClient) -> None:
        cluster.decode.pause_at = 1
        async with running(http, True, **CHOICES) as task:
            await cluster.decode.until(lambda: len(cluster.decode.seen) == 4)
            await leave(task)
            await cluster.decode.until(lambda: len(cluster.decode.aborted) == 3)
        await cluster.router.until(lambda: bool(cluster.router.done))
        assert [outcome for _, outcome in cluster.router.done] == [Outcome.CANCELLED]
        assert cluster.count("apiserver_requests_total", outcome="cancelled") == 3

    @pytest.mark.parametrize("stage", ["router", "prefill", "decode"])
    async def test_before_its_choices_have_begun(
        self, cluster: Any, http: httpx.AsyncClient, stage: str
    ) -> None:
        cluster.router.hold = stage == "router"
        cluster.prefill.pause_at = 0 if stage == "prefill" else None
        cluster.decode.pause_at = 0 if stage == "decode" else None
        async with running(http, True, **CHOICES) as task:
            match stage:
                case "router":
                    await cluster.router.until(lambda: bool(cluster.router.admits))
                case "prefill":
                    await cluster.prefill.until(lambda: bool(cluster.prefill.seen))
                case "decode":
                    await cluster.decode.until(lambda: bool(cluster.decode.seen))
            await leave(task)
            await cluster.router.until(lambda: bool(cluster.router.done))
        assert [outcome for _, outcome in cluster.router.done] == [Outcome.CANCELLED]
        if stage == "prefill":
            await cluster.prefill.until(lambda: len(cluster.prefill.aborted) == 1)
        if stage == "decode":
            await cluster.decode.until(lambda: len(cluster.decode.aborted) == 1)
            await cluster.prefill.until(lambda: len(cluster.prefill.released) == 1)


class TestWorkerOfChoicesFails:
    async def test_prefill_lost_each_goes_its_own_way(self, cluster: Any, http: httpx.AsyncClient) -> None:
        await cluster.add("prefill-1", WORKER_ROLE_PREFILL)
        cluster.prefill.pause_at = 0
        async with running(http, False, **CHOICES) as task:
            await cluster.prefill.until(lambda: bool(cluster.prefill.seen))
            await cluster.prefill.crash()
            answer = json.loads(await task)
        assert [choice["text"] for choice in answer["choices"]] == choices_text(cluster)
        together, *alone = cluster.router.admits
        assert together.choices == 3
        assert [(admit.choices, list(admit.excluded_workers)) for admit in alone] == [(1, ["prefill-0"])] * 3
        await cluster.router.until(lambda: len(cluster.router.done) == 4)
        assert cluster.router.done[0] == (together.request_id, Outcome.FAILED)
        assert cluster.count("apiserver_requests_total", outcome="completed") == 3

    async def test_decode_lost_after_tokens_were_sent_each_goes_on(
        self, cluster: Any, http: httpx.AsyncClient
    ) -> None:
        await cluster.add("decode-1", WORKER_ROLE_DECODE)
        cluster.decode.pause_at = 3
        async with running(http, True, **CHOICES) as task:
            await cluster.decode.until(lambda: len(cluster.decode.seen) == 4)
            await cluster.router.until(lambda: bool(cluster.router.first_tokens))
            await cluster.decode.crash()
            stream = await task
        texts = ["", "", ""]
        for piece in pieces(stream):
            for choice in piece["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts == choices_text(cluster)
        assert [admit.choices for admit in cluster.router.admits] == [3, 1, 1, 1]

    async def test_a_refusal_is_that_of_all(self, cluster: Any, http: httpx.AsyncClient) -> None:
        error = InvalidRequest("n: the 3 choices of a request run side by side, and the engine allows 2")
        cluster.router.refuse_with = (Outcome.REJECTED, error)
        response = await post(http, **CHOICES)
        assert response.status_code == 400
        assert response.json()["error"]["message"] == error.message
        assert "retry-after" not in response.headers
        assert len(cluster.router.admits) == 1


class TestWorkerFails:
    @both_ways
    async def test_prefill_lost_another_takes_over(
        self, cluster: Any, http: httpx.AsyncClient, stream: bool
    ) -> None:
        await cluster.add("prefill-1", WORKER_ROLE_PREFILL)
        cluster.prefill.pause_at = 0
        async with running(http, stream) as task:
            await cluster.prefill.until(lambda: bool(cluster.prefill.seen))
            await cluster.prefill.crash()
            await task
        _, second = cluster.router.admits
        assert list(second.excluded_workers) == ["prefill-0"]
        assert cluster.router.failed_workers == ["prefill-0"]
        assert cluster.count("apiserver_requests_total", outcome="completed") == 1

    async def test_decode_lost_after_tokens_were_sent_the_stream_goes_on(
        self, cluster: Any, http: httpx.AsyncClient
    ) -> None:
        await cluster.add("decode-1", WORKER_ROLE_DECODE)
        cluster.decode.pause_at = 3
        async with running(http, True) as task:
            await cluster.decode.until(lambda: bool(cluster.decode.seen))
            await cluster.decode.crash()
            chunks = pieces(await task)
        text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
        assert text == expected(cluster)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"

    async def test_decode_lost_while_it_fetches_the_lease_is_given_back(
        self, cluster: Any, http: httpx.AsyncClient
    ) -> None:
        await cluster.add("decode-1", WORKER_ROLE_DECODE)
        cluster.decode.pause_at = 0
        async with running(http, False) as task:
            await cluster.decode.until(lambda: bool(cluster.decode.seen))
            await cluster.decode.crash()
            answer = json.loads(await task)
        assert answer["choices"][0]["text"] == expected(cluster)
        first, second = cluster.prefill.seen
        assert first != second
        await cluster.prefill.until(lambda: cluster.prefill.released == [first])

    async def test_the_only_decode_worker_lost_is_503(self, cluster: Any, http: httpx.AsyncClient) -> None:
        cluster.decode.fail_with = EngineDead("the engine died")
        response = await post(http, seed=1, temperature=1.0)  # nothing was sent before decode
        assert response.status_code == 503
        assert "retry-after" in response.headers
        assert cluster.router.failed_workers == ["decode-0"]
        await cluster.prefill.until(lambda: bool(cluster.prefill.released))

    async def test_after_a_token_that_cannot_become_prompt_it_is_an_error_in_the_stream(
        self, cluster: Any, http: httpx.AsyncClient
    ) -> None:
        await cluster.add("decode-1", WORKER_ROLE_DECODE)
        cluster.decode.pause_at = 2
        async with running(http, True, presence_penalty=1, temperature=1.0) as task:
            await cluster.decode.until(lambda: bool(cluster.decode.seen))
            await cluster.router.until(lambda: bool(cluster.router.first_tokens))
            await cluster.decode.crash()
            chunks = pieces(await task)
        assert chunks[0]["choices"][0]["text"] == expected(cluster)[0]
        assert "lost the worker decode-0" in chunks[-1]["error"]["message"]
        assert "presence_penalty counts output tokens" in chunks[-1]["error"]["message"]
        assert chunks[-1]["error"]["code"] == 503
        assert cluster.count("apiserver_requests_total", outcome="failed") == 1

    async def test_what_every_worker_would_refuse_is_not_tried_again(
        self, cluster: Any, http: httpx.AsyncClient
    ) -> None:
        cluster.prefill.fail_with = InvalidRequest("no such thing")
        response = await post(http)
        assert response.status_code == 400
        assert "no such thing" in response.text
        assert len(cluster.router.admits) == 1

    async def test_a_request_that_failed_on_a_worker_does_not_condemn_it(
        self, cluster: Any, http: httpx.AsyncClient
    ) -> None:
        await cluster.add("decode-1", WORKER_ROLE_DECODE)
        cluster.decode.fail_with = TransferError("the blocks did not come")
        response = await post(http)
        assert response.json()["choices"][0]["text"] == expected(cluster)
        assert cluster.router.failed_workers == []
        assert cluster.count("apiserver_worker_failures_total", error="TransferError") == 1

    async def test_a_worker_that_came_back_is_used_again(self, cluster: Any, http: httpx.AsyncClient) -> None:
        assert (await post(http)).status_code == 200
        await cluster.decode.crash()
        await cluster.decode.start()
        await cluster.router.members(cluster.prefill, cluster.decode)
        assert (await post(http)).json()["choices"][0]["text"] == expected(cluster)


class TestRouterAway:
    async def test_requests_that_run_go_on_and_the_new_session_names_them(
        self, cluster: Any, http: httpx.AsyncClient
    ) -> None:
        cluster.decode.pause_at = 2
        async with running(http, False) as task:
            await cluster.decode.until(lambda: bool(cluster.decode.seen))
            await cluster.router.crash()
            await cluster.router.start()
            await cluster.router.until(lambda: len(cluster.router.hellos) == 2)
            held = cluster.router.hellos[1].held
            assert [entry.request_id for entry in held] == [cluster.router.admits[0].request_id]
            assert held[0].placement.decode.worker_id == "decode-0"
            assert not held[0].placement.HasField("prefill"), "its part is over"
            cluster.decode.go.set()
            answer = json.loads(await task)
        assert answer["choices"][0]["text"] == expected(cluster)
        await cluster.router.until(lambda: bool(cluster.router.done))

    async def test_what_ends_before_the_new_router_has_answered_is_told(
        self, cluster: Any, http: httpx.AsyncClient
    ) -> None:
        cluster.decode.pause_at = 2
        async with running(http, False) as task:
            await cluster.decode.until(lambda: bool(cluster.decode.seen))
            await cluster.router.crash()
            cluster.router.silent = True
            await cluster.router.start()
            await cluster.router.until(lambda: len(cluster.router.hellos) == 2)
            cluster.decode.go.set()
            await task
        await cluster.router.until(lambda: bool(cluster.router.done))
        await cluster.router.members(cluster.prefill, cluster.decode)

    async def test_requests_that_wait_are_asked_for_again(
        self, cluster: Any, http: httpx.AsyncClient
    ) -> None:
        cluster.router.hold = True
        async with running(http, False) as task:
            await cluster.router.until(lambda: bool(cluster.router.admits))
            await cluster.router.crash()
            cluster.router.hold = False
            await cluster.router.start()
            answer = json.loads(await task)
        assert answer["choices"][0]["text"] == expected(cluster)
        first, second = cluster.router.admits
        assert first.request_id == second.request_id

    async def test_health_is_503_meanwhile(self, cluster: Any, http: httpx.AsyncClient) -> None:
        await cluster.router.crash()
        for _ in range(200):
            response = await http.get("/health")
            if response.status_code == 503:
                break
        assert response.json()["reason"] == "no session with the router"


async def test_closing_ends_what_runs(cluster: Any, http: httpx.AsyncClient) -> None:
    cluster.decode.pause_at = 0
    async with running(http, False):
        await cluster.decode.until(lambda: bool(cluster.decode.seen))
        await cluster.apiserver.aclose(drain_seconds=0)
        await cluster.prefill.until(lambda: bool(cluster.prefill.released) or not cluster.decode.running)
    await cluster.apiserver.aclose()
