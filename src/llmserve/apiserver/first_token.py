"""When the token that prefill draws may be shown to the user, and when tokens so far may become prompt.

It may, when decode, given prompt + that token as its prompt, draws the rest from the same
distribution as an engine that had drawn all of it. That fails for every sampling state that counts
from the first output token. Repetition penalty is over prompt and output together, logit bias,
allowed tokens and a minimum of tokens look at one position only: they all stay exact.
"""

from typing import Any

_GREEDY_BELOW = 1e-5  # vLLM's _SAMPLING_EPS


def inexact_because(params: Any) -> str:
    """Why decode must draw the first token again; empty when it need not. params: SamplingParams."""
    return next((reason for reason, applies in _states_that_span(params) if applies), "")


def stuck_because(params: Any) -> str:
    """Why a request of which tokens were sent can go on nowhere else; empty when it can. Greedy and seeded
    sampling draw the same tokens when they run again, and all state comes with them."""
    reason = inexact_because(params)
    if not reason or params.seed is not None or params.temperature < _GREEDY_BELOW:
        return ""
    return f"{reason}, and without a seed it would not draw the same tokens again"


def _states_that_span(params: Any) -> tuple[tuple[str, bool], ...]:
    return (
        ("the grammar's state spans it", params.structured_outputs is not None),
        ("presence_penalty counts output tokens", params.presence_penalty != 0.0),
        ("frequency_penalty counts output tokens", params.frequency_penalty != 0.0),
        ("the seeded generator's state spans it", _seeded(params)),
        ("a bad word may begin with it", bool(params.bad_words)),
        ("the thinking budget counts it", params.thinking_token_budget is not None),
        ("repetition detection sees it", params.repetition_detection is not None),
        ("a trace is replayed from it", params.trace_decode_token_ids is not None),
        ("a watermark depends on it", bool(params.watermarking)),
        ("custom arguments may keep state", bool(params.extra_args)),
    )


def _seeded(params: Any) -> bool:
    return params.seed is not None and params.temperature >= _GREEDY_BELOW
