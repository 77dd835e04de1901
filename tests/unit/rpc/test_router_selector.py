"""Which router to talk to next, and when."""

import asyncio

import pytest

from llmserve.rpc.leader import RouterSelector


async def test_it_stays_with_the_one_that_works() -> None:
    following = RouterSelector(("a", "b", "c"))
    assert (following.address, str(following), following.has_others) == ("a", "a or b or c", True)
    await following.failed()
    following.succeeded()
    assert following.address == "b"


async def test_it_pauses_after_each_round_and_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    following = RouterSelector(("a", "b"))
    for _ in range(20):
        await following.failed()
    assert len(pauses) == 10
    assert max(pauses) <= 0.2
    one = RouterSelector(("a",))
    pauses.clear()
    for _ in range(20):
        await one.failed()
    assert len(pauses) == 20
    assert (max(pauses) > 1.0, one.address, one.has_others) == (True, "a", False)


async def test_it_ends_a_task_that_was_cancelled() -> None:
    """Also when what it waited for has swallowed that, and there was no pause due."""
    following = RouterSelector(("a", "b"))

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await following.failed()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
