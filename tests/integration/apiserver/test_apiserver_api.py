"""The OpenAI and Anthropic APIs in front of a disaggregated cluster, with scripted workers."""

import json
from typing import Any

import httpx
import msgspec
import openai
import pytest

from llmserve.core.request import HandoverReport, Outcome


def text_after(cluster: Any, prompt_tokens: int, tokens: int) -> str:
    text = cluster.decode.text
    return bytes(text[(prompt_tokens + i) % len(text)] for i in range(tokens)).decode()


async def completion(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/v1/completions", json={"model": "tiny", "prompt": "abc", **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def events(http: httpx.AsyncClient, path: str, **body: Any) -> list[dict[str, Any]]:
    request = {"model": "tiny", "stream": True, **body}
    async with http.stream("POST", path, json=request) as response:
        assert response.status_code == 200, await response.aread()
        lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_chat_plain_and_streamed_with_a_real_client(cluster: Any) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        plain = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=9)
        stream = await client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    expected = text_after(cluster, len("hello"), 9)
    assert plain.choices[0].message.content == expected
    assert plain.usage is not None
    assert (plain.usage.prompt_tokens, plain.usage.completion_tokens) == (5, 9)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9


async def test_the_first_token_comes_from_prefill_and_decode_goes_on_from_it(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    answer = await completion(http, max_tokens=5, min_tokens=3)
    assert answer["choices"][0]["text"] == text_after(cluster, 3, 5)
    (prefill,), (decode,) = cluster.prefill.seen.values(), cluster.decode.seen.values()
    assert (prefill.limits.max_tokens, prefill.limits.min_tokens) == (1, 1)
    assert json.loads(prefill.kv_transfer_params) == {"do_remote_decode": True}
    assert list(decode.prompt_token_ids)[:-1] == list(prefill.prompt_token_ids)
    assert (decode.limits.max_tokens, decode.limits.min_tokens) == (4, 2)
    assert json.loads(decode.kv_transfer_params)["lease_id"] == prefill.request_id
    assert prefill.cache_salt == decode.cache_salt != ""
    assert cluster.count("apiserver_first_tokens_total", origin="prefill") == 1
    assert cluster.prefill.released == []


@pytest.mark.parametrize(
    "sampling",
    [
        {"presence_penalty": 0.5},
        {"seed": 1, "temperature": 0.7},
        {"structured_outputs": {"choice": ["a", "b"]}},
    ],
)
async def test_decode_draws_the_first_token_again_when_it_would_not_be_exact(
    cluster: Any, http: httpx.AsyncClient, sampling: dict[str, Any]
) -> None:
    cluster.prefill.text = b"0123456789"  # a draw that must not be seen
    cluster.prefill.cached_tokens = 2
    answer = await completion(http, max_tokens=5, **sampling)
    assert answer["choices"][0]["text"] == text_after(cluster, 3, 5)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 2
    (prefill,), (decode,) = cluster.prefill.seen.values(), cluster.decode.seen.values()
    assert list(decode.prompt_token_ids) == list(prefill.prompt_token_ids)
    assert decode.limits.max_tokens == 5
    sent = msgspec.msgpack.decode(decode.sampling_params)
    assert all(sent[name] for name in sampling)


async def test_one_token_needs_no_decode_and_no_lease(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await completion(http, max_tokens=1)
    assert answer["choices"][0]["text"] == text_after(cluster, 3, 1)
    assert answer["choices"][0]["finish_reason"] == "length"
    (prefill,) = cluster.prefill.seen.values()
    assert prefill.kv_transfer_params == b""
    assert not cluster.decode.seen


async def test_the_end_of_sequence_at_the_first_token_ends_the_request(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    cluster.prefill.text = b"\0"
    answer = await completion(http, max_tokens=5)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("", "stop")
    assert not cluster.decode.seen


async def test_the_last_place_of_the_model_s_length_is_one_token(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    answer = await completion(http, prompt="x" * 199, max_tokens=1)
    assert answer["usage"]["completion_tokens"] == 1
    assert not cluster.decode.seen


@pytest.mark.parametrize("length", [3, 16])
async def test_choices_of_a_prompt_that_fills_no_block_are_computed_where_they_decode(
    cluster: Any, http: httpx.AsyncClient, length: int
) -> None:
    answer = await completion(http, prompt="x" * length, max_tokens=4, n=3, temperature=1.0)
    assert [choice["text"] for choice in answer["choices"]] == [text_after(cluster, length, 4)] * 3
    assert (len(cluster.prefill.seen), len(cluster.decode.seen)) == (0, 3)
    assert answer["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(("length", "pushed"), [(40, False), (150, True)])
async def test_choices_have_one_place_and_one_prefill(
    cluster: Any, http: httpx.AsyncClient, length: int, pushed: bool
) -> None:
    cluster.router.pushes = pushed
    cluster.prefill.cached_tokens, cluster.decode.cached_tokens = 16, 32
    answer = await completion(http, prompt="x" * length, max_tokens=4, n=3, seed=7, prompt_logprobs=1)
    assert [choice["text"] for choice in answer["choices"]] == [text_after(cluster, length, 4)] * 3
    assert all(len(choice["prompt_logprobs"]) == length for choice in answer["choices"])
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 16, "not what the others found"
    (admit,) = cluster.router.admits
    assert (admit.choices, admit.max_output_tokens) == (3, 12)
    assert len(cluster.prefill.seen) == 1
    fetch, *decodes = cluster.decode.seen.values()
    assert (fetch.limits.max_tokens, bool(fetch.kv_transfer_params)) == (1, True)
    assert [(leg.limits.max_tokens, bool(leg.kv_transfer_params)) for leg in decodes] == [(4, False)] * 3
    seeds = [msgspec.msgpack.decode(leg.sampling_params)["seed"] for leg in decodes]
    assert seeds == [7, 8, 9]
    await cluster.settled()
    await cluster.router.until(lambda: bool(cluster.router.done))
    assert cluster.router.first_tokens == [admit.request_id]
    assert cluster.router.done == [(admit.request_id, Outcome.COMPLETED)]
    assert cluster.router.cached == [16]
    assert not cluster.prefill.released, "decode has read the KV"


@pytest.mark.parametrize(("penalty", "known"), [(0.0, True), (0.5, False)])
async def test_the_router_hears_how_long_the_hand_over_took(
    cluster: Any, http: httpx.AsyncClient, penalty: float, known: bool
) -> None:
    """Unless the first token is decode's: then nobody saw when prefill had ended."""
    cluster.decode.handover = HandoverReport("shm", 1000, 0.5)
    await completion(http, max_tokens=4, presence_penalty=penalty)
    await cluster.router.until(lambda: bool(cluster.router.done))
    (seconds,) = cluster.router.handover_seconds
    assert (seconds is not None and 0 < seconds < 5) is known


async def test_choices_have_one_hand_over(cluster: Any, http: httpx.AsyncClient) -> None:
    cluster.decode.handover = HandoverReport("shm", 1000, 0.5)
    body = {"model": "tiny", "prompt": "x" * 40, "max_tokens": 4, "n": 3, "seed": 7}
    response = await http.post("/v1/completions", json=body)
    assert response.headers["x-llmserve-transport"] == "shm"
    assert response.headers["x-llmserve-handover"] == "pull"


async def test_several_choices_streamed(cluster: Any, http: httpx.AsyncClient) -> None:
    chunks = await events(http, "/v1/completions", prompt="abc", max_tokens=4, n=2, temperature=1.0)
    texts = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert set(texts.values()) == {text_after(cluster, 3, 4)}


async def test_several_prompts(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await completion(http, prompt=["abc", "abcd"], max_tokens=4)
    assert [choice["text"] for choice in answer["choices"]] == [
        text_after(cluster, 3, 4),
        text_after(cluster, 4, 4),
    ]


async def test_a_stop_string_aborts_decode(cluster: Any, http: httpx.AsyncClient) -> None:
    cluster.decode.pause_at = 12  # it would go on for ever
    answer = await completion(http, max_tokens=100, stop=["brown"])
    text = answer["choices"][0]["text"]
    assert text == " quick "
    assert answer["choices"][0]["stop_reason"] == "brown"
    await cluster.decode.until(lambda: len(cluster.decode.aborted) == 1)
    assert cluster.prefill.released == []
    assert cluster.count("apiserver_requests_total", outcome="completed") == 1


async def test_a_stop_string_at_the_first_token_gives_the_lease_back(
    cluster: Any, http: httpx.AsyncClient
) -> None:
    answer = await completion(http, max_tokens=5, stop=[" "])
    assert answer["choices"][0]["text"] == ""
    await cluster.prefill.until(lambda: len(cluster.prefill.released) == 1)
    assert not cluster.decode.seen


async def test_logprobs_of_both_legs(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await completion(http, max_tokens=4, logprobs=2)
    logprobs = answer["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == text_after(cluster, 3, 4)
    assert logprobs["token_logprobs"] == [-1.0] * 4
    assert [len(top) for top in logprobs["top_logprobs"]] == [3] * 4  # two, and the token itself


async def test_prompt_logprobs_come_from_prefill_alone(cluster: Any, http: httpx.AsyncClient) -> None:
    answer = await completion(http, max_tokens=3, prompt_logprobs=1)
    scored = answer["choices"][0]["prompt_logprobs"]
    assert scored[0] is None
    assert len(scored) == 3
    (decode,) = cluster.decode.seen.values()
    assert "prompt_logprobs" not in msgspec.msgpack.decode(decode.sampling_params)


async def test_cached_tokens_are_those_of_prefill(cluster: Any, http: httpx.AsyncClient) -> None:
    cluster.prefill.cached_tokens = 2
    cluster.decode.cached_tokens = 3
    answer = await completion(http, max_tokens=3)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 2
    await cluster.router.until(lambda: bool(cluster.router.done))
    assert cluster.router.cached == [2]  # the router compares it with what it expected
    assert cluster.router.admits[0].block_tokens > 0


@pytest.mark.parametrize("penalty", [0.0, 0.5], ids=["prefill-s token", "drawn again"])
async def test_every_api_tells_what_prefill_read_from_the_cache_and_wrote_to_it(
    cluster: Any, http: httpx.AsyncClient, penalty: float
) -> None:
    cluster.prefill.cached_tokens, cluster.prefill.created_tokens = 2, 6
    cluster.decode.cached_tokens, cluster.decode.created_tokens = 9, 1  # not what the client is told
    messages = [{"role": "user", "content": "abcdefghij"}]
    sampling = {"model": "tiny", "presence_penalty": penalty}

    async def usage(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await http.post(path, json={**sampling, **body})
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()["usage"]
        return told

    chat = await usage("/v1/chat/completions", {"messages": messages, "max_tokens": 4})
    details = chat["prompt_tokens_details"]
    assert (chat["prompt_tokens"], details["cached_tokens"], details["created_cache_tokens"]) == (10, 2, 6)
    made = await usage("/v1/responses", {"input": "abcdefghij", "max_output_tokens": 4})
    details = made["input_tokens_details"]
    assert (made["input_tokens"], details["cached_tokens"], details["cache_write_tokens"]) == (10, 2, 6)
    said = await usage("/v1/messages", {"messages": messages, "max_tokens": 4})
    assert (said["input_tokens"], said["cache_read_input_tokens"]) == (10 - 2 - 6, 2)
    assert said["cache_creation_input_tokens"] == 6


async def test_one_worker_for_both(cluster: Any, http: httpx.AsyncClient) -> None:
    from llmserve.rpc.gen.llmserve.v1.common_pb2 import WORKER_ROLE_AGGREGATED

    cluster.router.workers = []
    both = await cluster.add("aggregated-0", WORKER_ROLE_AGGREGATED)
    answer = await completion(http, max_tokens=4, prompt_logprobs=1)
    assert answer["choices"][0]["text"] == text_after(cluster, 3, 4)
    assert len(answer["choices"][0]["prompt_logprobs"]) == 3
    (request,) = both.seen.values()
    assert (request.limits.max_tokens, request.kv_transfer_params) == (4, b"")


async def test_the_admission_names_the_prompt_s_blocks(cluster: Any, http: httpx.AsyncClient) -> None:
    await completion(http, prompt="x" * 40, max_tokens=2)
    (admit,) = cluster.router.admits
    assert (admit.prompt_tokens, admit.max_output_tokens, admit.tenant) == (40, 2, "default")
    assert [len(block_hash) for block_hash in admit.block_hashes] == [32, 32]  # 40 tokens, blocks of 16


async def test_a_client_s_cache_salt_separates_it(cluster: Any, http: httpx.AsyncClient) -> None:
    await completion(http, prompt="x" * 40, max_tokens=2)
    await completion(http, prompt="x" * 40, max_tokens=2, cache_salt="mine")
    first, second = cluster.router.admits
    assert first.block_hashes[0] != second.block_hashes[0]
    plain, salted = cluster.prefill.seen.values()
    assert plain.cache_salt != salted.cache_salt


async def test_models_tokenize_and_metrics(cluster: Any, http: httpx.AsyncClient) -> None:
    models = (await http.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["tiny"]
    tokens = (await http.post("/tokenize", json={"model": "tiny", "prompt": "ab"})).json()
    assert tokens["count"] == 2
    await completion(http, max_tokens=2)
    assert (
        'apiserver_requests_total{model="tiny",outcome="completed"} 1.0' in (await http.get("/metrics")).text
    )


async def test_responses_and_messages(cluster: Any, http: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"model": "tiny", "input": "hello", "max_output_tokens": 4}
    response = (await http.post("/v1/responses", json=body)).json()
    assert response["output"][0]["content"][0]["text"] == text_after(cluster, 5, 4)
    body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
    message = (await http.post("/v1/messages", json=body)).json()
    assert message["content"][0]["text"] == text_after(cluster, 5, 4)


async def test_workers_are_opened_once(cluster: Any, http: httpx.AsyncClient) -> None:
    for _ in range(3):
        await completion(http, max_tokens=2)
    assert cluster.count("apiserver_worker_links") == 2
