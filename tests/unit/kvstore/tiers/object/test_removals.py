"""The list of what was removed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
import xxhash

from llmserve.buckets.failures import FailureKind, RequestFailed
from llmserve.core.tasks import TaskOwner
from llmserve.kvstore.tiers.object.bucket import Bucket
from llmserve.kvstore.tiers.object.catalog import Catalog
from llmserve.kvstore.tiers.object.layout import PackDamaged
from llmserve.kvstore.tiers.object.removals import RemovalLog, decode_removals, encode_removals


def test_it_comes_back() -> None:
    removed = {"one/a.pack": [0, 3], "one/b.pack": []}
    assert decode_removals(encode_removals(removed)) == removed


def test_no_changed_byte_is_believed() -> None:
    encoded = encode_removals({"one/a.pack": [0, 3]})
    for position in range(len(encoded)):
        changed = bytearray(encoded)
        changed[position] ^= 1
        with pytest.raises(PackDamaged):
            decode_removals(bytes(changed))


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"5", b"[]", b"{}", b'{"version": 1}', b'{"version": 2, "packs": {}}', b"[" * 100_000),
        *(b'{"version": 1, "packs": []}', b'{"version": 1, "packs": {"a": 1}}'),
        *(b'{"version": 1, "packs": {"a": ["b"]}}', b'{"version": 1, "packs": {"a": [Infinity]}}'),
    ],
)
def test_a_list_that_somebody_made_up(body: bytes) -> None:
    """Its checksum fits."""
    with pytest.raises(PackDamaged):
        decode_removals(xxhash.xxh3_64_hexdigest(body).encode() + b"\n" + body)


class OneObject:
    """A bucket: counts the PUTs, and calls `meanwhile` while one is on its way."""

    def __init__(self) -> None:
        self.puts = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def put(self, path: str, body: memoryview) -> None:
        self.puts += 1
        await asyncio.sleep(0)
        self.meanwhile()


@asynccontextmanager
async def removal_log(bucket: OneObject) -> AsyncIterator[tuple[RemovalLog, TaskOwner]]:
    tasks = TaskOwner("test")
    yield RemovalLog("removals", cast("Bucket", bucket), Catalog(), tasks, 0.0), tasks
    await tasks.aclose()


async def written(tasks: TaskOwner) -> None:
    """Each PUT takes one turn of the loop, and each pause as much."""
    for _ in range(20):
        await asyncio.sleep(0)
    assert not len(tasks)


async def test_what_is_removed_while_the_list_is_written_is_written_next() -> None:
    """The list that is on its way does not have it, and nothing else may ever be removed."""
    bucket = OneObject()
    async with removal_log(bucket) as (log, tasks):
        bucket.meanwhile = lambda: log.note() if bucket.puts == 1 else None
        log.note()
        await written(tasks)
        assert bucket.puts == 2


async def test_a_list_that_cannot_be_written_waits_for_the_next_removal() -> None:
    def fails() -> None:
        raise RequestFailed(FailureKind.SLOW, "no answer")

    bucket = OneObject()
    bucket.meanwhile = fails
    async with removal_log(bucket) as (log, tasks):
        log.note()
        await written(tasks)
        assert bucket.puts == 1
