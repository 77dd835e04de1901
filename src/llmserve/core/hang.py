"""Decides whether something that should answer hangs.

A watchdog asks again and again. Whether the processes do any work tells those that are slow, compile or
swap from those that are stopped or deadlocked; each kind has a bound of its own. Silence is counted in the
watchdog's own ticks: while the machine was suspended, or so busy that the watchdog did not run either, no
silence is counted.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

_SHORTEST_TICK_SECONDS = 1.0
# Of the bound: what is silent is noticed in time, and questions cost an idle cluster little.
_TICK_SHARE = 1 / 8
# Of the silence that counts, per tick: more has passed only if the watchdog itself did not run.
_LONGEST_TICKS = 2.0
# Of a bound: what is silent for longer gets no new work.
_STALLED_SHARE = 1 / 3


class Health(StrEnum):
    ANSWERS = "answers"
    STALLED = "stalled"  # silent for too long to be given work
    HANGS = "hangs"  # silent for so long that it is to be replaced


@dataclass(frozen=True, slots=True)
class HangLimits:
    """How long silence may last: idle_seconds while the processes do nothing, busy_seconds in any case."""

    idle_seconds: float
    busy_seconds: float

    @property
    def tick_seconds(self) -> float:
        """How often to ask."""
        return max(_SHORTEST_TICK_SECONDS, _TICK_SHARE * self.idle_seconds)


class SilenceMeter:
    """Turns the watchdog's ticks into the health of what it watches. Pure. counts: silence counts from the
    first tick on; False: from the first answer on, for something that may not be reachable at all."""

    def __init__(self, limits: HangLimits, tick_seconds: float | None = None, *, counts: bool = True) -> None:
        self._limits, self._counts = limits, counts
        self._longest_seconds = (tick_seconds or limits.tick_seconds) * _LONGEST_TICKS
        self._last_tick: float | None = None
        self.silent_seconds = 0.0
        self.idle_seconds = 0.0  # of the silence, those at its end in which nothing was done

    def tick(self, now: float, *, answered: bool, works: bool) -> Health:
        """answered: an answer came since the tick before. works: the processes did something since then."""
        passed = 0.0
        if self._counts and self._last_tick is not None:
            passed = min(now - self._last_tick, self._longest_seconds)
        self._last_tick, self._counts = now, self._counts or answered
        self.silent_seconds = 0.0 if answered else self.silent_seconds + passed
        self.idle_seconds = 0.0 if answered or works else self.idle_seconds + passed
        return self.health

    @property
    def health(self) -> Health:
        if self._reaches(1.0):
            return Health.HANGS
        return Health.STALLED if self._reaches(_STALLED_SHARE) else Health.ANSWERS

    def _reaches(self, share: float) -> bool:
        limits = self._limits
        is_idle = self.idle_seconds >= share * limits.idle_seconds
        return is_idle or self.silent_seconds >= share * limits.busy_seconds

    @property
    def text(self) -> str:
        """Describes the silence, for people."""
        doing = "does nothing" if self.idle_seconds >= self._limits.idle_seconds else "still works"
        return f"it has not answered for {self.silent_seconds:.0f} s and {doing}"


class Watchdog:
    """Runs `until_hung`, as one task of its owner. ask: returns when an answer came; a question without an
    answer stays open, one that fails is asked again at the next tick. works: returns whether the processes
    did something since its last call; it is called only while they are silent, and may block for a few
    milliseconds. counts: as in SilenceMeter."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[None]],
        works: Callable[[], bool],
        limits: HangLimits,
        *,
        counts: bool = True,
        tick_seconds: float | None = None,
    ) -> None:
        self._ask, self._works = ask, works
        self._tick_seconds = tick_seconds or limits.tick_seconds
        self._meter = SilenceMeter(limits, tick_seconds, counts=counts)

    @property
    def health(self) -> Health:
        return self._meter.health

    @property
    def silent_seconds(self) -> float:
        return self._meter.silent_seconds

    async def until_hung(self) -> str:
        """Returns, in words, why the processes are to be replaced."""
        question: asyncio.Task[None] | None = None
        try:
            while True:
                question = question or asyncio.create_task(self._asked(), name="watchdog.question")
                began = time.monotonic()
                await asyncio.wait((question,), timeout=self._tick_seconds)
                answered = _is_answered(question)
                question = None if question.done() else question
                works = answered or await asyncio.to_thread(self._works)
                if self._meter.tick(time.monotonic(), answered=answered, works=works) is Health.HANGS:
                    return self._meter.text
                await asyncio.sleep(began + self._tick_seconds - time.monotonic())
        finally:
            if question is not None:
                question.cancel()
                with suppress(BaseException):
                    await question

    async def _asked(self) -> None:
        await self._ask()


def _is_answered(question: asyncio.Task[None]) -> bool:
    return question.done() and not question.cancelled() and question.exception() is None
