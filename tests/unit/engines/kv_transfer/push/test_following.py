from llmserve.core.ids import TransferId
from llmserve.engines.kv_transfer.push.following import PromptFollower, PushChunk

ID = TransferId("t")


def test_blocks_are_final_when_they_are_full_or_the_prompt_ends() -> None:
    follower = PromptFollower(ID, prompt_tokens=10, block_size_tokens=4)
    assert follower.step(0, 6, [7, 8]) == PushChunk(ID, 0, 1, (7, 8))
    assert follower.step(6, 4, [7, 8, 9]) == PushChunk(ID, 1, 3, (7, 8, 9))


def test_tokens_after_the_prompt_are_not_its() -> None:
    follower = PromptFollower(ID, prompt_tokens=8, block_size_tokens=4)
    assert follower.step(0, 12, [7, 8, 9]) == PushChunk(ID, 0, 2, (7, 8, 9))


def test_what_the_cache_has_is_final_before_the_step() -> None:
    follower = PromptFollower(ID, prompt_tokens=10, block_size_tokens=4)
    assert follower.step(8, 2, [7, 8, 9]) == PushChunk(ID, 2, 3, (7, 8, 9))


def test_a_prompt_that_begins_again_has_restarted() -> None:
    follower = PromptFollower(ID, prompt_tokens=10, block_size_tokens=4)
    follower.step(0, 8, [7, 8])
    assert follower.step(0, 8, [1, 2]).restarted
    assert not follower.step(8, 2, [1, 2, 3]).restarted


def test_a_prompt_that_comes_back_in_other_blocks_has_restarted() -> None:
    """Preempted, and resumed from what the cache has: as much as before, but elsewhere."""
    follower = PromptFollower(ID, prompt_tokens=10, block_size_tokens=4)
    follower.step(0, 8, [7, 8])
    assert follower.step(8, 2, [7, 5, 6]).restarted
