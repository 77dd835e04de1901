"""Where the time of a sequence went."""

import pytest

from llmserve.apiserver.explain.phases import phases
from llmserve.apiserver.explain.record import AttemptRecord, SequenceRecord
from llmserve.core.request import HandoverReport


def _sequence(**fields: object) -> SequenceRecord:
    """Asked for after 1 s, placed after 3; the first token after 6, decode's after 7; over after 10."""
    known = {
        "attempts": [AttemptRecord(101.0, 103.0)],
        "first_token_at": 106.0,
        "first_token_from": "prefill",
        "decode_started_at": 107.0,
        "ended_at": 110.0,
        "outcome": "completed",
        "output_tokens": 5,
    }
    return SequenceRecord(**{**known, **fields})  # type: ignore[arg-type]


def _shown(sequence: SequenceRecord, ended_at: float = 111.0) -> list[tuple[str, float]]:
    """The phases and how long each took. They have no gap, and none is before the request or after it."""
    found = phases(sequence, 100.0, ended_at)
    assert [one.begin for one in found] == [100.0, *(one.end for one in found[:-1])]
    assert found[-1].end == ended_at
    return [(one.name.value, one.end - one.begin) for one in found]


def test_a_handed_over_prompt() -> None:
    expected = [("prepare", 1), ("queue", 2), ("prefill", 3), ("hand-over", 1), ("decode", 3), ("finish", 1)]
    assert _shown(_sequence()) == expected


def test_one_worker_does_both() -> None:
    expected = [("prepare", 1), ("queue", 2), ("prefill", 3), ("decode", 4), ("finish", 1)]
    assert _shown(_sequence(first_token_from="aggregated", decode_started_at=0.0)) == expected


def test_a_first_token_that_decode_draws_comes_after_the_hand_over() -> None:
    report = HandoverReport("shm", 1, 0.5)
    shown = _shown(_sequence(first_token_from="decode", handovers=[report]))
    assert shown[2:] == [("prefill", 2.5), ("hand-over", 0.5), ("decode", 4), ("finish", 1)]


def test_a_hand_over_that_took_longer_than_is_left_does_not_reach_into_the_queue() -> None:
    report = HandoverReport("shm", 1, 30.0)
    shown = _shown(_sequence(first_token_from="decode", handovers=[report]))
    assert shown[1:3] == [("queue", 2), ("hand-over", 3)]


@pytest.mark.parametrize(
    ("outcome", "last"), [("completed", "decode"), ("cancelled", "hand-over"), ("", "hand-over")]
)
def test_what_follows_the_token_of_prefill_when_decode_gave_none(outcome: str, last: str) -> None:
    """It was the only one, or decode was waited for in vain."""
    shown = _shown(_sequence(decode_started_at=0.0, outcome=outcome))
    assert shown[2:] == [("prefill", 3), (last, 4), ("finish", 1)]


def test_a_worker_that_failed_before_the_first_token() -> None:
    attempts = [AttemptRecord(101.0, 102.0), AttemptRecord(104.0, 105.0)]
    shown = _shown(_sequence(attempts=attempts))
    assert shown[:5] == [("prepare", 1), ("queue", 1), ("retry", 2), ("queue", 1), ("prefill", 1)]


def test_a_worker_that_failed_while_tokens_came_is_part_of_decode() -> None:
    attempts = [AttemptRecord(101.0, 103.0), AttemptRecord(108.0, 109.0)]
    assert _shown(_sequence(attempts=attempts)) == _shown(_sequence())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"attempts": []}, [("prepare", 11)]),
        ({"attempts": [AttemptRecord(101.0)]}, [("prepare", 1), ("queue", 10)]),
        ({}, [("prepare", 1), ("queue", 2), ("prefill", 8)]),
    ],
)
def test_a_request_that_runs_ends_with_what_it_waits_for(
    fields: dict[str, object], expected: list[tuple[str, float]]
) -> None:
    so_far = {"first_token_at": 0.0, "decode_started_at": 0.0, "ended_at": 0.0, "outcome": ""}
    assert _shown(_sequence(**so_far, **fields)) == expected


def test_a_request_that_was_refused_in_the_queue() -> None:
    fields = {"first_token_at": 0.0, "attempts": [AttemptRecord(101.0)], "outcome": "rejected"}
    assert _shown(_sequence(**fields)) == [("prepare", 1), ("queue", 9), ("finish", 1)]
