"""Owned tasks: none fails unseen, none outlives its owner."""

import asyncio
import logging

import pytest

from llmserve.core.tasks import TaskOwner, first_done, running_beside


async def test_closing_cancels_and_waits() -> None:
    owner = TaskOwner("test")
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    owner.spawn("work", work())
    await asyncio.sleep(0)
    await owner.aclose()
    assert ended.is_set()
    assert len(owner) == 0


async def test_a_fatal_failure_reaches_the_owner(caplog: pytest.LogCaptureFixture) -> None:
    owner = TaskOwner("test")

    async def work() -> None:
        raise RuntimeError("boom")

    with caplog.at_level(logging.CRITICAL):
        owner.spawn("work", work(), fatal=True)
        error = await asyncio.wait_for(owner.failed, 30)
    assert str(error) == "boom"
    await owner.aclose()


async def test_a_failure_is_logged_with_the_tasks_name(caplog: pytest.LogCaptureFixture) -> None:
    owner = TaskOwner("test")

    async def work() -> None:
        raise RuntimeError("boom")

    task = owner.spawn("work", work())
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert "task failed: test.work" in caplog.text
    await owner.aclose()
    await owner.aclose()


async def test_the_others_are_cancelled_when_the_first_is_done() -> None:
    slow, quick = await first_done("race", asyncio.sleep(600), asyncio.sleep(0, "quick"))
    assert (slow.cancelled(), quick.result()) == (True, "quick")
    assert (slow.get_name(), quick.get_name()) == ("race.0", "race.1")


async def test_a_race_that_is_cancelled_leaves_nothing_running() -> None:
    race = asyncio.create_task(first_done("race", asyncio.sleep(600), asyncio.sleep(600)))
    await asyncio.sleep(0)
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert {task.get_name() for task in asyncio.all_tasks()} & {"race.0", "race.1"} == set()


async def test_what_runs_beside_a_block_ends_with_it() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with running_beside("work", work()):
        await asyncio.sleep(0)
        assert not ended.is_set()
    assert ended.is_set()


async def test_a_failure_of_what_runs_beside_is_raised() -> None:
    async def work() -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        async with running_beside("work", work()):
            await asyncio.sleep(0)
