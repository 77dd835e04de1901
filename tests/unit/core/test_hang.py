import asyncio
from collections.abc import Iterator

import pytest

from llmserve.core.hang import HangLimits, Health, SilenceMeter, Watchdog

LIMITS = HangLimits(idle_seconds=15.0, busy_seconds=300.0)


class Watched:
    """A meter that ticks once a second."""

    def __init__(self) -> None:
        self.now = 100.0
        self.meter = SilenceMeter(LIMITS)
        self.tick(answered=True)

    def tick(self, *, answered: bool = False, works: bool = False, seconds: float = 1.0) -> Health:
        self.now += seconds
        return self.meter.tick(self.now, answered=answered, works=works)

    def ticks(self, count: int, *, works: bool = False) -> list[Health]:
        return [self.tick(works=works) for _ in range(count)]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_what_answers_is_well_however_long(watched: Watched) -> None:
    assert {watched.tick(answered=True) for _ in range(1000)} == {Health.ANSWERS}


def test_what_is_silent_and_does_nothing_stalls_and_then_hangs(watched: Watched) -> None:
    told = watched.ticks(15)
    assert told == [Health.ANSWERS] * 4 + [Health.STALLED] * 10 + [Health.HANGS]
    assert watched.meter.text == "it has not answered for 15 s and does nothing"


def test_a_long_step_that_computes_is_no_hang(watched: Watched) -> None:
    assert set(watched.ticks(99, works=True)) == {Health.ANSWERS}
    assert watched.tick(answered=True) is Health.ANSWERS
    assert watched.meter.silent_seconds == 0


def test_what_works_for_ever_hangs_too_but_later(watched: Watched) -> None:
    told = watched.ticks(300, works=True)
    assert told.index(Health.STALLED) == 99
    assert told.index(Health.HANGS) == 299
    assert watched.meter.text == "it has not answered for 300 s and still works"


def test_a_little_work_now_and_then_keeps_it_from_counting_as_idle(watched: Watched) -> None:
    for _ in range(20):
        watched.ticks(10)
        watched.tick(works=True)
    assert watched.meter.health is not Health.HANGS


def test_a_suspended_machine_makes_nothing_hang(watched: Watched) -> None:
    assert watched.tick(seconds=3600) is Health.ANSWERS
    assert watched.meter.silent_seconds == 2 * LIMITS.tick_seconds
    assert watched.tick(answered=True) is Health.ANSWERS


def test_an_answer_ends_a_stall(watched: Watched) -> None:
    assert watched.ticks(8)[-1] is Health.STALLED
    assert watched.tick(answered=True) is Health.ANSWERS
    assert watched.ticks(4)[-1] is Health.ANSWERS


def test_what_may_not_be_reachable_is_judged_only_once_it_has_answered() -> None:
    meter = SilenceMeter(LIMITS, counts=False)
    for now in range(100):
        assert meter.tick(now, answered=False, works=False) is Health.ANSWERS
    meter.tick(100, answered=True, works=True)
    told = [meter.tick(now, answered=False, works=False) for now in range(101, 117)]
    assert told[-1] is Health.HANGS


def _answers(*answers: bool) -> Iterator[bool]:
    yield from answers
    while True:
        yield False


@pytest.mark.parametrize(("idle_seconds", "tick_seconds"), [(3.0, 1.0), (8.0, 1.0), (16.0, 2.0)])
def test_questions_are_rarer_where_silence_may_last_longer(idle_seconds: float, tick_seconds: float) -> None:
    assert HangLimits(idle_seconds, 60.0).tick_seconds == tick_seconds


def test_a_meter_counts_at_most_two_ticks_at_once() -> None:
    meter = SilenceMeter(HangLimits(16.0, 60.0))
    meter.tick(0.0, answered=False, works=False)
    meter.tick(100.0, answered=False, works=False)
    assert meter.silent_seconds == 4.0


@pytest.mark.parametrize("fails", [False, True], ids=["silence", "errors"])
async def test_the_watchdog_asks_until_no_answer_comes(fails: bool) -> None:
    answers, asked = _answers(True, True), 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        if next(answers):
            return
        if fails:
            raise ConnectionError
        await asyncio.Event().wait()

    dog = Watchdog(ask, lambda: False, HangLimits(0.1, 10.0), tick_seconds=0.02)
    async with asyncio.timeout(30):
        reason = await dog.until_hung()
    assert "does nothing" in reason
    assert dog.health is Health.HANGS
    assert asked > 4 if fails else asked == 3


async def _until_health(dog: Watchdog, health: Health) -> None:
    async with asyncio.timeout(30):
        while dog.health is not health:  # noqa: ASYNC110 - what the watchdog sees
            await asyncio.sleep(0.005)


async def test_a_late_answer_is_one() -> None:
    release = asyncio.Event()

    async def ask() -> None:
        await release.wait()

    dog = Watchdog(ask, lambda: False, HangLimits(0.3, 10.0), tick_seconds=0.01)
    task = asyncio.create_task(dog.until_hung())
    await _until_health(dog, Health.STALLED)
    release.set()
    await _until_health(dog, Health.ANSWERS)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
