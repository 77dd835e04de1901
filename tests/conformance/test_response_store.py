"""The contract of ResponseStore, on memory and on a real server."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmserve.apiserver.responses.redis import RedisResponses
from llmserve.apiserver.responses.store import (
    MemoryResponses,
    ResponseKey,
    ResponseStage,
    ResponseStore,
    StoredResponse,
)
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import ManifestError, StateUnavailable
from llmserve.core.ids import TenantId
from llmserve.rpc.redis_client import RedisAccess
from tests.support.valkey import Valkey

ONE = ResponseKey(TenantId("red"), "resp_1")
LONG, SHORT = 60.0, 0.15
KEEP_SECONDS = 1.0
_clusters = itertools.count()


@dataclass
class Kit:
    """What two apiservers see of one store, and how time passes there."""

    a: ResponseStore
    b: ResponseStore
    pass_time: Callable[[float], Awaitable[None]]


@pytest.fixture(params=["memory", "redis"])
async def kit(request: pytest.FixtureRequest) -> AsyncIterator[Kit]:
    if request.param == "memory":
        clock = VirtualClock(100.0)

        async def advance(seconds: float) -> None:
            clock.advance(seconds)

        memory = MemoryResponses(clock, KEEP_SECONDS, 2**20)
        yield Kit(memory, memory, advance)
        return
    server: Valkey = request.getfixturevalue("valkey")
    name = f"responses-{next(_clusters)}"
    async with AsyncExitStack() as stack:
        both = [_redis(server.url, name) for _ in range(2)]
        for one in both:
            stack.push_async_callback(one.aclose)
        yield Kit(both[0], both[1], asyncio.sleep)


def _redis(url: str, cluster: str, call_seconds: float = 5.0) -> RedisResponses:
    return RedisResponses(RedisAccess(url, call_seconds), cluster, KEEP_SECONDS)


async def test_what_one_puts_the_other_gets(kit: Kit) -> None:
    assert await kit.b.get(ONE) is None
    await kit.a.put(ONE, "text")
    assert await kit.b.get(ONE) == StoredResponse(ResponseStage.ENDED, "text")
    await kit.b.put(ONE, "other")
    assert await kit.a.get(ONE) == StoredResponse(ResponseStage.ENDED, "other")


@pytest.mark.parametrize(
    "other", [("blue", "resp_1"), ("red", "resp_2"), ("r", "ed:resp_1"), ("red:resp_1", "")]
)
async def test_no_other_key_finds_it(kit: Kit, other: tuple[str, str]) -> None:
    key = ResponseKey(TenantId(other[0]), other[1])
    await kit.a.begin(ONE, "text", LONG)
    assert await kit.b.get(key) is None
    assert not await kit.b.cancel(key, "cancelled")
    assert not await kit.b.end(key, "ended")
    assert await kit.a.get(ONE) == StoredResponse(ResponseStage.RUNNING, "text")


async def test_it_is_forgotten_in_time(kit: Kit) -> None:
    await kit.a.put(ONE, "text")
    await kit.pass_time(KEEP_SECONDS + 0.1)
    assert await kit.b.get(ONE) is None


async def test_one_that_is_begun_is_ended_once(kit: Kit) -> None:
    await kit.a.begin(ONE, "begun", LONG)
    assert await kit.b.get(ONE) == StoredResponse(ResponseStage.RUNNING, "begun")
    assert await kit.a.end(ONE, "whole")
    assert not await kit.a.end(ONE, "again")
    assert not await kit.b.cancel(ONE, "cancelled")
    assert not await kit.a.renew(ONE, LONG)
    assert await kit.b.get(ONE) == StoredResponse(ResponseStage.ENDED, "whole")


async def test_cancelled_elsewhere_it_is_neither_renewed_nor_ended(kit: Kit) -> None:
    await kit.a.begin(ONE, "begun", LONG)
    assert await kit.b.cancel(ONE, "cancelled")
    assert not await kit.b.cancel(ONE, "again")
    assert not await kit.a.renew(ONE, LONG)
    assert not await kit.a.end(ONE, "whole")
    assert await kit.a.get(ONE) == StoredResponse(ResponseStage.CANCELLED, "cancelled")


async def test_one_that_is_not_renewed_is_lost_and_found_when_it_is(kit: Kit) -> None:
    await kit.a.begin(ONE, "begun", SHORT)
    assert await kit.a.renew(ONE, SHORT)
    await kit.pass_time(SHORT + 0.05)
    assert await kit.b.get(ONE) == StoredResponse(ResponseStage.LOST, "begun")
    assert await kit.a.renew(ONE, LONG)
    assert await kit.b.get(ONE) == StoredResponse(ResponseStage.RUNNING, "begun")


async def test_an_id_may_be_begun_again(kit: Kit) -> None:
    await kit.a.begin(ONE, "begun", LONG)
    assert await kit.b.cancel(ONE, "cancelled")
    await kit.a.begin(ONE, "anew", LONG)
    assert await kit.a.renew(ONE, LONG)
    assert await kit.b.get(ONE) == StoredResponse(ResponseStage.RUNNING, "anew")


async def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    store = MemoryResponses(VirtualClock(), 60.0, most_bytes=10)
    keys = [ResponseKey(TenantId("red"), str(index)) for index in range(4)]
    for key in keys:
        await store.put(key, "abcd")
    assert [await store.get(key) is not None for key in keys] == [False, False, True, True]
    await store.put(keys[2], "ab")  # the newest now
    await store.put(keys[0], "abcdef")
    assert [await store.get(key) is not None for key in keys] == [True, False, True, False]
    await store.put(keys[1], "larger than all")
    assert [await store.get(key) is not None for key in keys] == [False] * 4


async def test_a_server_that_is_away_is_told_in_time(tmp_path: Path) -> None:
    server = Valkey(tmp_path)
    store = _redis(server.url, "away", call_seconds=0.2)
    with pytest.raises(StateUnavailable, match=str(server.port)):
        await store.get(ONE)
    await store.aclose()
    await store.aclose()


def test_a_url_that_is_none_fails_the_start() -> None:
    with pytest.raises(ManifestError, match=r"state\.redis\.url"):
        _redis("http://h:1", "c")
