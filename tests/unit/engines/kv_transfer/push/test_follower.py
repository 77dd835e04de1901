import pytest

from llmserve.core.ids import TransferId
from llmserve.core.kv_params import BlockTable
from llmserve.engines.kv_transfer.push.progress import PromptFollower, PushChunk

ID = TransferId("t")


def table(*block_ids: int, firsts: tuple[int, ...] = (0,)) -> BlockTable:
    return BlockTable(block_ids, firsts)


def test_blocks_are_final_when_they_are_full_or_the_prompt_ends() -> None:
    follower = PromptFollower(ID, prompt_tokens=10, block_size_tokens=4)
    assert follower.step(0, 6, table(7, 8)) == PushChunk(ID, 0, 1, table(7, 8))
    assert follower.step(6, 4, table(7, 8, 9)) == PushChunk(ID, 1, 3, table(7, 8, 9))


def test_tokens_after_the_prompt_are_not_its() -> None:
    follower = PromptFollower(ID, prompt_tokens=8, block_size_tokens=4)
    assert follower.step(0, 12, table(7, 8, 9)) == PushChunk(ID, 0, 2, table(7, 8, 9))


def test_what_the_cache_has_is_final_before_the_step() -> None:
    follower = PromptFollower(ID, prompt_tokens=10, block_size_tokens=4)
    assert follower.step(8, 2, table(7, 8, 9)) == PushChunk(ID, 2, 3, table(7, 8, 9))


def test_a_prompt_that_begins_again_has_restarted() -> None:
    follower = PromptFollower(ID, prompt_tokens=10, block_size_tokens=4)
    follower.step(0, 8, table(7, 8))
    assert follower.step(0, 8, table(1, 2)).restarted
    assert not follower.step(8, 2, table(1, 2, 3)).restarted


def test_a_prompt_that_comes_back_in_other_blocks_has_restarted() -> None:
    """Preempted, and resumed from what the cache has: as much as before, but elsewhere."""
    follower = PromptFollower(ID, prompt_tokens=10, block_size_tokens=4)
    follower.step(0, 8, table(7, 8))
    assert follower.step(8, 2, table(7, 5, 6)).restarted


def test_a_prompt_that_has_fewer_blocks_than_before_has_restarted() -> None:
    follower = PromptFollower(ID, prompt_tokens=10, block_size_tokens=4)
    follower.step(0, 8, table(7, 8, 9))
    assert follower.step(8, 2, table(7, 8)).restarted


def test_blocks_that_a_window_has_left_behind_are_no_restart() -> None:
    follower = PromptFollower(ID, prompt_tokens=20, block_size_tokens=4)
    follower.step(0, 8, table(1, 2, 11, 12, firsts=(0, 0)))
    assert not follower.step(8, 4, table(2, 3, 11, 12, 13, firsts=(1, 0))).restarted
    assert not follower.step(12, 8, table(5, 11, 12, 13, 14, 15, firsts=(4, 0))).restarted, "all were left"


@pytest.mark.parametrize(
    "then",
    [
        table(9, 3, 11, 12, 13, firsts=(1, 0)),  # another block in the window
        table(2, 3, 11, 10, 13, firsts=(1, 0)),  # another block of the other group
        table(1, 2, 3, 11, 12, 13, firsts=(0, 0)),  # a block came back
    ],
)
def test_blocks_that_changed_in_any_group_are_a_restart(then: BlockTable) -> None:
    follower = PromptFollower(ID, prompt_tokens=20, block_size_tokens=4)
    follower.step(0, 8, table(2, 11, 12, firsts=(1, 0)))
    assert follower.step(8, 4, then).restarted
