"""Watches whether the engine of a worker answers, and ends one that hangs."""

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

from llmserve.core.errors import EngineDead
from llmserve.core.hang import TICK_SECONDS, HangLimits, Health, Watchdog
from llmserve.core.process import WorkMeter
from llmserve.engines.base import Engine


class EngineWatch:
    """`run` is one task of the worker, from when its engine has started. on_hang: ends its requests."""

    def __init__(
        self,
        engine: Engine,
        limits: HangLimits,
        on_hang: Callable[[EngineDead], Awaitable[None]],
        *,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self._engine, self._on_hang = engine, on_hang
        works = WorkMeter(engine.processes)
        self._watchdog = Watchdog(engine.ping, works, limits, tick_seconds=tick_seconds)

    @property
    def stalled(self) -> bool:
        """It should get no requests for now."""
        return self._watchdog.health is not Health.ANSWERS

    @property
    def silent_seconds(self) -> float:
        return self._watchdog.silent_seconds

    async def run(self) -> None:
        """Ends only with an error: EngineDead, after the requests were given back and the engine's processes
        were killed: a stopped one would not notice anything else."""
        error = EngineDead(f"the engine hangs: {await self._watchdog.until_hung()}")
        await self._on_hang(error)
        for pid in self._engine.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        raise error
