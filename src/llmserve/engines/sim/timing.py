"""How long a step takes, and who waits for it."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from llmserve.core.clock import VirtualClock


@dataclass(frozen=True, slots=True)
class Timing:
    """A linear model of one engine step. prefill_tokens_per_second 0: prefill takes no time."""

    prefill_tokens_per_second: float = 0.0
    decode_step_seconds: float = 0.0
    decode_seconds_per_sequence: float = 0.0

    def step_seconds(self, prefill_tokens: int, decode_sequences: int) -> float:
        seconds = 0.0
        if prefill_tokens and self.prefill_tokens_per_second:
            seconds += prefill_tokens / self.prefill_tokens_per_second
        if decode_sequences:
            seconds += self.decode_step_seconds + self.decode_seconds_per_sequence * decode_sequences
        return seconds


class Pace(Protocol):
    def now(self) -> float:
        """Monotonic seconds."""

    async def sleep_until(self, when: float) -> None:
        """Returns at or after `when`; always lets other tasks run."""


class RealPace:
    """The event loop's clock."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep_until(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self.now()))


class VirtualPace:
    """Time passes only by waiting for it, and then at once. One engine, or several in turn."""

    def __init__(self) -> None:
        self._clock = VirtualClock()

    def now(self) -> float:
        return self._clock.now()

    async def sleep_until(self, when: float) -> None:
        self._clock.advance(max(0.0, when - self.now()))
        await asyncio.sleep(0)
