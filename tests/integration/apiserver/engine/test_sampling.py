from types import SimpleNamespace
from typing import Any

import pytest

from llmserve.apiserver.engine.sampling import inexact_because

PLAIN: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "min_tokens": 3,
    "repetition_penalty": 1.2,
    "logit_bias": {1: 2.0},
    "allowed_token_ids": [1, 2],
    "logprobs": 5,
    "prompt_logprobs": 2,
    "stop": ["x"],
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": None,
    "structured_outputs": None,
    "bad_words": [],
    "thinking_token_budget": None,
    "repetition_detection": None,
    "trace_decode_token_ids": None,
    "watermarking": False,
    "extra_args": None,
}


def params(**changed: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**PLAIN, **changed})


def test_what_looks_at_one_position_or_at_the_prompt_too_is_exact() -> None:
    assert inexact_because(params()) == ""


def test_a_seed_without_randomness_is_exact() -> None:
    assert inexact_because(params(seed=7, temperature=0.0)) == ""


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("structured_outputs", object(), "grammar"),
        ("presence_penalty", -0.5, "presence_penalty"),
        ("frequency_penalty", 0.1, "frequency_penalty"),
        ("seed", 0, "generator"),
        ("bad_words", ["x"], "bad word"),
        ("thinking_token_budget", 0, "budget"),
        ("repetition_detection", object(), "repetition detection"),
        ("trace_decode_token_ids", [1], "trace"),
        ("watermarking", True, "watermark"),
        ("extra_args", {"mine": 1}, "custom"),
    ],
)
def test_state_that_counts_from_the_first_output_token_is_not(field: str, value: Any, reason: str) -> None:
    assert reason in inexact_because(params(**{field: value}))
