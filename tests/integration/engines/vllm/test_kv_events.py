import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
    ZmqEventPublisher,
)

from llmserve.core.request import KvEvents
from llmserve.engines.vllm.kv_events import KvEventSource, events_endpoint, fold

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


@pytest.fixture
async def publisher(tmp_path: Path) -> AsyncIterator[zmq.Socket[bytes]]:
    """As vLLM's, for messages that it would not send."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.bind(events_endpoint(tmp_path))
        yield socket


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[KvEventSource]:
    source = KvEventSource(events_endpoint(tmp_path))
    yield source
    source.close()


async def next_of(source: KvEventSource) -> KvEvents:
    async with asyncio.timeout(20):
        return await source.next()


def message(number: int, *events: Any) -> list[bytes]:
    payload = msgspec.msgpack.encode(KVEventBatch(ts=0.0, events=list(events)))
    return [b"", number.to_bytes(8, "big"), payload]


async def test_what_vllm_publishes_is_read_from_the_first_batch_on(tmp_path: Path) -> None:
    publisher = ZmqEventPublisher(0, events_endpoint(tmp_path))
    source = KvEventSource(events_endpoint(tmp_path))
    try:
        await asyncio.sleep(0.2)  # an engine is asked later than that
        publisher.publish(KVEventBatch(ts=time.time(), events=[stored(b"a", group=0)]))
        assert await next_of(source) == KvEvents(stored=(b"a",))
    finally:
        source.close()
        publisher.shutdown()


@pytest.mark.parametrize(
    "malformed",
    [
        [b"one part"],
        [b"", (1).to_bytes(8, "big"), b"\xc1"],
        [b"", (1).to_bytes(8, "big"), msgspec.msgpack.encode([0.0, [["BlockStored"]]])],
        message(1, BlockRemoved(block_hashes=[7], medium=None)),
        [b"", (1).to_bytes(8, "big"), msgspec.msgpack.encode([0.0, []])[:-1] + b"\x91" * 100_000],
        [b"", b"\xff" * 8, b"", b""],
    ],
    ids=["parts", "bytes", "fields", "number", "depth", "many"],
)
async def test_a_message_that_cannot_be_read_costs_what_is_known_and_no_more(
    publisher: zmq.Socket[bytes],
    source: KvEventSource,
    malformed: list[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await asyncio.to_thread(publisher.recv) == b"\x01"  # it has subscribed
    with caplog.at_level(logging.WARNING):
        for parts in (message(0, stored(b"a", group=0)), malformed, message(2, stored(b"b", group=0))):
            publisher.send_multipart(parts)
        read = [await next_of(source) for _ in range(3)]
    assert read == [KvEvents(stored=(b"a",)), KvEvents(cleared=True), KvEvents(stored=(b"b",))]
    assert len(caplog.records) <= 1


async def test_a_batch_that_was_lost_makes_all_before_it_unknown(
    publisher: zmq.Socket[bytes], source: KvEventSource
) -> None:
    assert await asyncio.to_thread(publisher.recv) == b"\x01"
    for number in (0, 2):
        publisher.send_multipart(message(number, stored(b"a", group=0)))
    assert [(await next_of(source)).cleared for _ in range(2)] == [False, True]
