"""An event loop in virtual time: when every task waits, its clock jumps to the next timer.

A test with the mark `virtual_time` runs on it (tests/unit/conftest.py). It is for code that waits for time
alone: threads, processes and sockets need real time, and the loop does not wait for them before it jumps.
"""

import asyncio
import selectors

from llmserve.core.clock import VirtualClock


class LoopClock:
    """The clock of the running event loop."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = VirtualClock()
        super().__init__(_JumpingSelector(self._clock))

    def time(self) -> float:
        return self._clock.now()


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Moves the clock instead of waiting. Without a timer it really waits, until the test's deadline."""
        if timeout is None:
            return super().select()
        ready = super().select(0)
        if not ready:
            self._clock.advance(max(0.0, timeout))
        return ready
