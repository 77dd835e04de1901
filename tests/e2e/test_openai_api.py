"""Every API that the README promises, in prefill/decode mode, each with a real client."""

import json
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.support.poisoned import POISONED

MODEL = "SmolLM2-135M-Instruct"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


def _chat(client: openai.OpenAI, **options: Any) -> Any:
    options = {"model": MODEL, "messages": CAPITAL, "max_tokens": 24, "temperature": 0, **options}
    return client.chat.completions.create(**options)


def test_chat_knows_paris(client: openai.OpenAI) -> None:
    answer = _chat(client)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens > 0


def test_chat_streamed_is_the_same_text(client: openai.OpenAI) -> None:
    plain = _chat(client).choices[0].message.content
    chunks = list(_chat(client, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain
    assert len(chunks) > 3


def test_include_usage_counts_every_token_once(client: openai.OpenAI) -> None:
    plain = _chat(client).usage
    *_, last = _chat(client, stream=True, stream_options={"include_usage": True})
    assert last.usage.completion_tokens == plain.completion_tokens
    assert last.usage.prompt_tokens == plain.prompt_tokens


def test_usage_says_what_was_written_to_the_prefix_cache_and_read_from_it(
    client: openai.OpenAI, url: str
) -> None:
    messages = [{"role": "user", "content": "Count the sheep: " + "one more sheep, " * 90}]
    first, again = (_chat(client, messages=messages, max_tokens=2).usage for _ in range(2))
    written = first.prompt_tokens_details.created_cache_tokens
    assert 0 < written <= first.prompt_tokens - first.prompt_tokens_details.cached_tokens
    assert again.prompt_tokens_details.created_cache_tokens == 0
    assert again.prompt_tokens_details.cached_tokens >= written
    other = [{"role": "user", "content": "Count the goats: " + "one more goat, " * 90}]
    claude = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    usage = claude.messages.create(model=MODEL, max_tokens=2, messages=other).usage  # type: ignore[arg-type]
    assert usage.cache_creation_input_tokens
    assert usage.input_tokens < usage.cache_creation_input_tokens
    answer = client.responses.create(model=MODEL, input=other, max_output_tokens=2)  # type: ignore[arg-type]
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.cached_tokens >= usage.cache_creation_input_tokens


def test_conversations_of_a_batch_have_an_answer_each(client: openai.OpenAI, http: httpx.Client) -> None:
    conversations = [CAPITAL, [{"role": "user", "content": "What colour is the sky?"}]]
    body = {"model": MODEL, "messages": conversations, "max_tokens": 12, "temperature": 0}
    choices = http.post("/v1/chat/completions/batch", json=body).json()["choices"]
    alone = [_chat(client, messages=one, max_tokens=12).choices[0].message.content for one in conversations]
    assert [choice["message"]["content"] for choice in choices] == alone


def test_generative_scoring_prefers_the_likely_word(http: httpx.Client) -> None:
    words = [
        http.post("/tokenize", json={"model": MODEL, "prompt": word, "add_special_tokens": False}).json()
        for word in (" Paris", " cheese")
    ]
    body = {
        "model": MODEL,
        "query": "The capital of",
        "items": [" France is"],
        "label_token_ids": [word["tokens"][0] for word in words],
    }
    answer = http.post("/generative_scoring", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["score"] > 0.5


def test_completions_plain_and_streamed(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": MODEL,
        "prompt": "One, two, three,",
        "max_tokens": 8,
        "temperature": 0,
    }
    plain = client.completions.create(**options).choices[0].text
    streamed = client.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == plain
    assert "four" in plain


def test_a_single_token_needs_no_decode(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="One, two, three,", max_tokens=1, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1
    assert answer.choices[0].finish_reason == "length"


def test_n_gives_n_choices(client: openai.OpenAI) -> None:
    answer = _chat(client, n=3, temperature=0.9, max_tokens=8)
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2]
    assert all(choice.message.content for choice in answer.choices)


@pytest.mark.parametrize("repeats", [1, 40])
def test_choices_with_a_seed_are_the_same_each_time(client: openai.OpenAI, repeats: int) -> None:
    """In a batch of their own. The first time, the prompt is not cached yet: other kernels compute it."""
    prompt = "The history of the city begins with the river. " * repeats
    options: dict[str, Any] = {"prompt": prompt, "max_tokens": 16, "temperature": 1.0, "n": 4, "seed": 11}
    client.completions.create(model=MODEL, **options)
    answers = {
        tuple(choice.text for choice in client.completions.create(model=MODEL, **options).choices)
        for _ in range(4)
    }
    assert len(answers) == 1
    assert len(set(answers.pop())) > 1, "each choice has a seed of its own"


def test_logprobs_span_the_hand_over(client: openai.OpenAI) -> None:
    answer = _chat(client, logprobs=True, top_logprobs=3, max_tokens=6)
    content = answer.choices[0].logprobs.content
    assert len(content) == 6
    assert all(len(token.top_logprobs) == 3 for token in content)
    greedy = [max(token.top_logprobs, key=lambda top: top.logprob).token for token in content]
    assert [token.token for token in content] == greedy


def test_prompt_logprobs_come_from_prefill(http: httpx.Client) -> None:
    body = {
        "model": MODEL,
        "prompt": "One, two, three,",
        "max_tokens": 3,
        "temperature": 0,
        "prompt_logprobs": 1,
    }
    choice = http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["prompt_logprobs"][0] is None
    assert len(choice["prompt_logprobs"]) > 3
    assert all(choice["prompt_logprobs"][1:])


def test_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="One, two, three,", max_tokens=40, temperature=0, stop=["six"]
    )
    assert "five" in answer.choices[0].text
    assert "six" not in answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"


def test_seed_repeats_a_sampled_answer(client: openai.OpenAI) -> None:
    answers = {
        _chat(client, seed=seed, temperature=1.0, max_tokens=16).choices[0].message.content
        for seed in (7, 7, 7)
    }
    assert len(answers) == 1
    other = _chat(client, seed=8, temperature=1.0, max_tokens=16).choices[0].message.content
    assert other not in answers


def test_penalties_are_those_of_one_engine(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "prompt": "a a a a", "max_tokens": 12, "temperature": 0}
    free = client.completions.create(**options).choices[0].text
    held = client.completions.create(**options, frequency_penalty=2.0, presence_penalty=2.0).choices[0].text
    assert free != held


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_a_named_tool_is_called_with_valid_arguments(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = _chat(client, tools=[TOOL], tool_choice=choice, max_tokens=64)
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)


def test_tools_may_be_left_alone(client: openai.OpenAI) -> None:
    answer = _chat(client, tools=[TOOL], tool_choice="auto", max_tokens=24)
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def test_json_schema_is_kept(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    answer = _chat(
        client,
        max_tokens=80,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": schema, "strict": True},
        },
    )
    parsed = json.loads(answer.choices[0].message.content)
    assert set(parsed) == {"city", "big"}
    assert isinstance(parsed["big"], bool)


def test_responses_api(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model=MODEL, input="What is the capital of France?", temperature=0, max_output_tokens=24
    )
    assert "Paris" in answer.output_text
    cut = client.responses.create(model=MODEL, input="Count to 100.", max_output_tokens=4, stream=True)
    assert list(cut)[-1].type == "response.incomplete"


def test_anthropic_messages_plain_and_streamed(url: str) -> None:
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 24, "messages": CAPITAL}
    options["extra_body"] = {"temperature": 0}
    answer = client.messages.create(**options)
    assert "Paris" in answer.content[0].text
    with client.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == answer.content[0].text


def test_anthropic_messages_continue_a_prefilled_answer(url: str) -> None:
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    begun = "The capital of France is"
    messages: Any = [*CAPITAL, {"role": "assistant", "content": begun}]
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 4, "extra_body": {"temperature": 0}}
    assert client.messages.create(messages=messages, **options).content[0].text.startswith(" Paris")
    asked = client.messages.count_tokens(model=MODEL, messages=CAPITAL)  # type: ignore[arg-type]
    counted = client.messages.count_tokens(model=MODEL, messages=messages)
    assert 0 < counted.input_tokens - asked.input_tokens < len(begun)


def test_models_lists_the_served_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_tokenize_and_back(http: httpx.Client) -> None:
    tokens = http.post("/tokenize", json={"model": MODEL, "prompt": "Hello, world"}).json()["tokens"]
    text = http.post("/detokenize", json={"model": MODEL, "tokens": tokens}).json()["prompt"]
    assert text == "Hello, world"


def test_health_and_metrics(http: httpx.Client) -> None:
    assert http.get("/health").status_code == 200
    metrics = http.get("/metrics").text
    assert "apiserver_requests_total" in metrics
    assert "time_to_first_token_seconds" in metrics


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"model": "no-such-model"}, 404, "no-such-model"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 3}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, 400, "2048"),
        ({"messages": []}, 400, ""),
    ],
)
def test_bad_requests_say_what_is_wrong(
    http: httpx.Client, change: dict[str, Any], status: int, says: str
) -> None:
    body = {"model": MODEL, "messages": CAPITAL, "max_tokens": 4, **change}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == status
    assert says in json.dumps(answer.json()["error"])


def test_a_body_that_is_no_json_is_refused(http: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    answer = http.post("/v1/chat/completions", content=b'{"model": ', headers=headers)
    assert answer.status_code == 400
    assert "error" in answer.json()


def test_a_huge_body_is_refused_before_it_is_read(http: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    answer = http.post("/v1/chat/completions", content=b" " * (40 << 20), headers=headers)
    assert answer.status_code == 413


def test_what_no_engine_can_serve_ends_none(http: httpx.Client, client: openai.OpenAI) -> None:
    """Every engine that such a request reaches must be there afterwards."""
    ask = {"model": MODEL, "prompt": "One, two,", "max_tokens": 4}
    failures = _worker_failures(http)
    for poisoned in POISONED:
        for stream in (False, True):
            body = {**ask, "stream": stream, "structured_outputs": poisoned}
            answer = http.post("/v1/completions", json=body)
            assert answer.status_code == 400, (poisoned, answer.text)
    served = http.post("/v1/completions", json={**ask, "structured_outputs": {"regex": "[a-z]+"}})
    assert served.status_code == 200, served.text
    assert _worker_failures(http) == failures
    assert "Paris" in _chat(client).choices[0].message.content


def _worker_failures(http: httpx.Client) -> list[str]:
    lines = http.get("/metrics").text.splitlines()
    return [line for line in lines if line.startswith("apiserver_worker_failures_total")]
