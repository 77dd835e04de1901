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
