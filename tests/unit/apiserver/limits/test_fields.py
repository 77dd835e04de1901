"""Fields beyond their limit are refused by name, and those at it are not."""

from typing import Any

import pytest

from llmserve.apiserver.limits.fields import check_fields
from llmserve.config.schema.limits import SecurityLimits
from llmserve.core.errors import InvalidRequest

LIMITS = SecurityLimits(
    choices=3,
    prompts=6,
    stop=2,
    stop_characters=4,
    max_tokens=10,
    logit_bias=2,
    cache_salt_characters=5,
)


@pytest.mark.parametrize(
    ("fields", "over", "setting"),
    [
        ({"n": 3}, {"n": 4}, "choices"),
        ({"n": "3"}, {"n": "4"}, "choices"),
        ({"n": 1e0}, {"n": 10**400}, "choices"),
        ({"best_of": 3}, {"best_of": 4}, "choices"),
        *(
            ({name: 10}, {name: 11}, "max_tokens")
            for name in (
                *("max_tokens", "max_completion_tokens", "max_output_tokens"),
                *("max_new_tokens", "max_length"),
            )
        ),
        *(({name: ["a"] * 2}, {name: ["a"] * 3}, "stop") for name in ("stop", "stop_sequences")),
        ({"stop_token_ids": [1, 2]}, {"stop_token_ids": [1, 2, 3]}, "stop"),
        ({"stop": "abcd"}, {"stop": "abcde"}, "stop_characters"),
        ({"stop_sequences": ["abcd"]}, {"stop_sequences": ["a", "abcde"]}, "stop_characters"),
        ({"logit_bias": {"1": 1, "2": 1}}, {"logit_bias": {"1": 1, "2": 1, "3": 1}}, "logit_bias"),
        *(({name: [1, 2]}, {name: [1, 2, 3]}, "logit_bias") for name in ("allowed_token_ids", "bad_words")),
        ({"cache_salt": "abcde"}, {"cache_salt": "abcdef"}, "cache_salt_characters"),
        ({"prompt": ["a"] * 6}, {"prompt": ["a"] * 7}, "prompts"),
        ({"prompts": ["a"] * 3, "n": 2}, {"prompts": ["a"] * 3, "n": 3}, "prompts"),
        ({"prompt": [[1]] * 6}, {"prompt": [[1]] * 7}, "prompts"),
        ({"input": [[{}]] * 6}, {"input": [[{}]] * 7}, "prompts"),
        ({"documents": [{}] * 6}, {"documents": [{}] * 7}, "prompts"),
        *(
            ({name: ["a"] * 6}, {name: ["a"] * 7}, "prompts")
            for name in ("items", "queries", "text_1", "text_2", "data_1", "data_2")
        ),
    ],
)
def test_each_limit(fields: dict[str, Any], over: dict[str, Any], setting: str) -> None:
    check_fields(fields, LIMITS)
    with pytest.raises(InvalidRequest, match=rf"\(security\.limits\.{setting}\)") as refused:
        check_fields(over, LIMITS)
    assert refused.value.field in over
    assert refused.value.message.startswith(f"{refused.value.field} may ")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": list(range(100))},
        {"messages": [{"role": "user", "content": "a"}] * 100},
        {"input": [{"role": "user"}] * 100},
        {"n": None, "stop": None, "cache_salt": None, "prompt": []},
        # What is wrong in another way is said by the route.
        {
            "n": [9],
            "max_tokens": "many",
            "stop": 9,
            "cache_salt": ["long" * 9],
            "logit_bias": 7,
            "best_of": {},
        },
    ],
)
def test_what_is_within_the_limits(fields: dict[str, Any]) -> None:
    check_fields(fields, LIMITS)


def test_an_answer_may_be_as_long_as_the_model_allows_without_a_setting() -> None:
    check_fields({"max_tokens": 10**9}, SecurityLimits())


def test_the_message_says_what_was_asked_for() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_fields({"n": 10_000_000}, SecurityLimits())
    assert refused.value.message == "n may be at most 128, got 10000000 (security.limits.choices)"
