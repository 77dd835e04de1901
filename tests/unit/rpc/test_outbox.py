import asyncio

from llmserve.rpc.outbox import Outbox


async def test_all_that_waits_is_taken_at_once() -> None:
    outbox: Outbox[int] = Outbox()
    taking = asyncio.ensure_future(outbox.take())
    await asyncio.sleep(0)
    assert not taking.done()
    for item in (1, 2, 3):
        outbox.put(item)
    assert await taking == [1, 2, 3]


async def test_what_still_waits_is_taken_before_the_end() -> None:
    outbox: Outbox[int] = Outbox()
    outbox.put(1)
    outbox.close()
    outbox.close()
    assert [await outbox.take(), await outbox.take(), await outbox.take()] == [[1], [], []]


async def test_closing_ends_the_wait() -> None:
    outbox: Outbox[int] = Outbox()
    taking = asyncio.ensure_future(outbox.take())
    await asyncio.sleep(0)
    outbox.close()
    assert await taking == []


async def test_what_may_wait_travels_with_the_next_that_may_not() -> None:
    outbox: Outbox[int] = Outbox()
    taking = asyncio.ensure_future(outbox.take())
    outbox.put(1, within_seconds=60)
    outbox.put(2, within_seconds=60)
    await asyncio.sleep(0.01)
    assert not taking.done()
    outbox.put(3)
    assert await taking == [1, 2, 3]


async def test_what_may_wait_is_taken_when_its_time_is_over() -> None:
    outbox: Outbox[int] = Outbox()
    for item in (1, 2):
        outbox.put(item, within_seconds=0.001)
        async with asyncio.timeout(30):
            assert await outbox.take() == [item]


async def test_what_may_wait_is_taken_before_the_end() -> None:
    outbox: Outbox[int] = Outbox()
    outbox.put(1, within_seconds=60)
    outbox.close()
    assert [await outbox.take(), await outbox.take()] == [[1], []]


async def test_what_has_less_time_is_not_held_up_by_what_has_more() -> None:
    outbox: Outbox[int] = Outbox()
    outbox.put(1, within_seconds=60)
    outbox.put(2, within_seconds=0.001)
    outbox.put(3, within_seconds=60)
    async with asyncio.timeout(30):
        assert await outbox.take() == [1, 2, 3]


async def test_the_time_of_what_was_taken_ends_the_wait_of_nothing_later() -> None:
    outbox: Outbox[int] = Outbox()
    outbox.put(1, within_seconds=0.005)
    outbox.put(2)
    assert await outbox.take() == [1, 2]
    outbox.put(3, within_seconds=60)
    taking = asyncio.ensure_future(outbox.take())
    await asyncio.sleep(0.02)
    assert not taking.done()
    taking.cancel()
