"""Streams as endpoints write them, cut anywhere."""

import json
from typing import Any

import pytest

from llmserve.loadgen.answer import Answer, AnswerFailure, error_text


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}


def text(said: str, ids: list[int] | None = None) -> bytes:
    return event(choices=[{"text": said, "token_ids": ids}])


def read(*parts: bytes) -> Answer:
    """A second from part to part."""
    answer = Answer()
    for now, part in enumerate(parts, 1):
        answer.feed(part, float(now))
    answer.ended()
    return answer


def test_times_text_and_usage_of_a_completion() -> None:
    answer = read(text("a", [1]), text("", [2]), text("b", [3]), event(choices=[], usage=USAGE) + DONE)
    assert (answer.first_at, answer.last_at, list(answer.gaps)) == (1.0, 3.0, [1.0, 1.0])
    assert (answer.text, answer.token_ids, answer.output_tokens) == ("ab", [1, 2, 3], 3)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.failure) == (7, 4, None)


def test_a_stream_that_is_cut_anywhere_reads_the_same() -> None:
    whole = text("é") + b": ping\n\n" + text("b") + event(choices=[], usage=USAGE) + DONE
    for at in range(len(whole)):
        answer = read(whole[:at], whole[at:])
        assert (answer.text, answer.output_tokens, answer.failure) == ("éb", 3, None)


def test_carriage_returns_and_no_space_after_the_colon() -> None:
    answer = read(b'data:{"choices":[{"text":"a"}]}\r\n\r\ndata: [DONE]\r\n\r\n')
    assert (answer.text, answer.failure) == ("a", None)


def test_the_role_of_a_chat_is_no_token_but_thoughts_and_tools_are() -> None:
    role = event(choices=[{"delta": {"role": "assistant", "content": ""}}])
    thought = event(choices=[{"delta": {"reasoning_content": "hm"}}])
    tool = event(choices=[{"delta": {"tool_calls": [{}]}}])
    end = event(choices=[{"delta": {}, "finish_reason": "stop"}])
    answer = read(role, thought, event(choices=[{"delta": {"content": "hi"}}]), tool, end, DONE)
    assert (answer.first_at, answer.last_at) == (2.0, 4.0)
    assert answer.text == "hi"


def test_tokens_are_counted_by_usage_then_ids_then_arrivals() -> None:
    assert read(text("a", [1, 2]), event(choices=[], usage=USAGE), DONE).output_tokens == 3
    assert read(text("a", [1, 2]), DONE).output_tokens == 2
    assert read(text("a"), text("b"), DONE).output_tokens == 2
    assert read(DONE).output_tokens == 0


@pytest.mark.parametrize(
    ("parts", "kind", "message"),
    [
        ((text("a"),), AnswerFailure.BROKEN, "before [DONE]"),
        ((), AnswerFailure.BROKEN, "before [DONE]"),
        ((DONE,), AnswerFailure.NO_TOKENS, "no tokens"),
        ((text("a"), event(error={"message": "engine died"}), DONE), AnswerFailure.IN_STREAM, "engine died"),
        ((b"data: {nonsense\n\n", DONE), AnswerFailure.IN_STREAM, "not an event"),
        ((b"data: 5\n\n", DONE), AnswerFailure.IN_STREAM, "not an event"),
        ((event(choices=["a"]), DONE), AnswerFailure.IN_STREAM, "not an event"),
    ],
)
def test_an_answer_that_is_not_whole_fails(
    parts: tuple[bytes, ...], kind: AnswerFailure, message: str
) -> None:
    failure = read(*parts).failure
    assert failure is not None
    assert failure.kind is kind
    assert message in failure.message


def test_errors_in_every_shape() -> None:
    assert error_text({"error": {"message": "full"}}) == "full"
    assert error_text({"message": "full"}) == "full"
    assert error_text({"error": "full"}) == "full"
    assert error_text("x" * 1000) == "x" * 300
    assert error_text([1]) == "[1]"
