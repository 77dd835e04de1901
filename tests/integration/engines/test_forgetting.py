"""What is noted of an adapter's blocks, and which of them may go."""

from dataclasses import dataclass, field
from typing import Any

from llmserve.engines.connector.forgetting import FORGET, AdapterBlocks, install


@dataclass
class FakeBlock:
    block_id: int
    block_hash: bytes | None


def _device(*contents: bytes | None) -> list[Any]:
    return [FakeBlock(number, content) for number, content in enumerate(contents)]


def test_only_blocks_that_still_have_the_content_are_taken_and_only_once() -> None:
    noted, blocks = AdapterBlocks(), _device(b"a", b"b", b"c", None, b"e")
    noted.note("red", blocks[:2])
    noted.note("blue", blocks[2:4])  # one is not full, so it is not cached
    blocks[1].block_hash = b"of another request by now"
    assert noted.take("red", blocks) == {0}
    assert noted.take("red", blocks) == set()
    assert noted.take("blue", blocks) == {2}


def test_a_block_counts_for_who_filled_it_last() -> None:
    noted, blocks = AdapterBlocks(), _device(b"a")
    noted.note("red", blocks)
    noted.note("blue", blocks)
    assert noted.take("red", blocks) == set()
    assert noted.take("blue", blocks) == {0}


@dataclass
class FakeScheduler:
    """EngineCore's scheduler, its cache and its publisher in one."""

    blocks: list[Any]
    events: list[Any] = field(default_factory=list)
    published: list[Any] = field(default_factory=list)

    @property
    def scheduler(self) -> "FakeScheduler":
        return self

    kv_cache_manager = block_pool = kv_event_publisher = scheduler

    def evict_blocks(self, block_ids: set[int]) -> None:
        for number in block_ids:
            self.events.append(self.blocks[number].block_hash)
            self.blocks[number].block_hash = None

    def take_events(self) -> list[Any]:
        events, self.events = self.events, []
        return events

    def publish(self, batch: Any) -> None:
        self.published.append(batch.events)


def test_the_engine_forgets_and_says_so_at_once() -> None:
    noted, core = AdapterBlocks(), FakeScheduler(_device(b"a", b"b"))
    noted.note("red", core.blocks[:1])
    install(FakeScheduler, noted)
    getattr(core, FORGET)("red")
    getattr(core, FORGET)("red")
    assert [block.block_hash for block in core.blocks] == [None, b"b"]
    assert core.published == [[b"a"]]
