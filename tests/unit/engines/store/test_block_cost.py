"""What a block of a prompt costs, from steps on a clock of ours."""

import pytest

from llmserve.engines.store.block_cost import BlockCost

BLOCK = 100


def pace(*steps: tuple[int, float, float]) -> float:
    """Each step: its tokens, when it was given out, when it ended."""
    made = BlockCost(BLOCK)
    for tokens, began, ended in steps:
        made.begins(tokens, began)
        made.ended(ended)
    return made.block_seconds


def test_nothing_is_known_before_a_prompt_was_computed() -> None:
    assert pace() == 0
    assert pace((1, 0.0, 5.0), (99, 5.0, 10.0)) == 0


def test_the_first_prompt_tells_it() -> None:
    assert pace((200, 0.0, 4.0)) == pytest.approx(2.0)


def test_idle_time_is_not_work() -> None:
    assert pace((100, 0.0, 1.0), (100, 50.0, 51.0)) == pytest.approx(1.0)


def test_a_step_that_was_given_out_early_has_waited_for_the_one_before() -> None:
    made = BlockCost(BLOCK)
    made.begins(100, 0.0)
    made.begins(100, 0.1)
    made.ended(1.0)
    made.ended(2.0)
    assert made.block_seconds == pytest.approx(1.0)


def test_it_follows_a_change_and_forgets_one_odd_step() -> None:
    assert pace((100, 0.0, 1.0), (100, 1.0, 11.0)) == pytest.approx(2.8)
    slower = [(100, float(2 * at), float(2 * at + 2)) for at in range(20)]
    assert pace((100, -1.0, 0.0), *slower) == pytest.approx(2.0, rel=0.05)


def test_an_end_without_a_beginning_is_not_counted() -> None:
    made = BlockCost(BLOCK)
    made.ended(1.0)
    assert made.block_seconds == 0
