from typing import Any

from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored

from llmserve.core.request import KvEvents
from llmserve.engines.vllm.kv_events import fold

SLIDING, FULL = 0, 5


def stored(*hashes: bytes, group: int | None = FULL) -> BlockStored:
    return BlockStored(
        block_hashes=list(hashes),
        parent_block_hash=None,
        token_ids=[],
        block_size=4,
        lora_id=None,
        medium=None,
        lora_name=None,
        group_idx=group,
    )


def removed(*hashes: bytes, group: int | None = FULL) -> BlockRemoved:
    return BlockRemoved(block_hashes=list(hashes), medium=None, group_idx=group)


def folded(*events: Any, group: int = FULL, cleared: bool = False) -> KvEvents:
    return fold(list(events), group, cleared=cleared)


def test_what_came_and_went_within_a_batch_is_left_out() -> None:
    events = folded(stored(b"a", b"b"), removed(b"a", b"c"))
    assert (events.stored, events.removed, events.cleared) == ((b"b",), (b"a", b"c"), False)


def test_after_a_clear_only_what_follows_counts() -> None:
    events = folded(stored(b"a"), removed(b"c"), AllBlocksCleared(), stored(b"b"))
    assert (events.stored, events.removed, events.cleared) == ((b"b",), (), True)
    assert folded(cleared=True).cleared


def test_a_group_with_a_window_that_gives_its_block_back_says_nothing_of_the_prompt() -> None:
    both = [stored(b"a", group=SLIDING), stored(b"a")]
    assert folded(*both, removed(b"a", group=SLIDING)).stored == (b"a",)
    gone = folded(*both, removed(b"a"), stored(b"b", group=SLIDING))
    assert (gone.stored, gone.removed) == ((), (b"a",))


def test_events_without_a_group_are_those_of_the_only_one() -> None:
    events = folded(stored(b"a", group=None), removed(b"b", group=None), group=0)
    assert (events.stored, events.removed) == ((b"a",), (b"b",))
