"""What a worker reports of itself, and whether its engine answers."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

from llmserve.core.errors import EngineDead
from llmserve.core.hang import HangLimits, Health, Watchdog
from llmserve.core.process import WorkMeter
from llmserve.core.request import EngineLoad
from llmserve.engines.base import Engine
from llmserve.metrics.worker import WorkerMetrics
from llmserve.rpc.gen.llmserve.v1 import common_pb2


class EngineHealth:
    """`run` is one task of the worker, from when its engine has started. on_hang: ends its requests."""

    def __init__(
        self,
        engine: Engine,
        limits: HangLimits,
        on_hang: Callable[[EngineDead], Awaitable[None]],
        *,
        tick_seconds: float | None = None,
    ) -> None:
        self._engine, self._on_hang = engine, on_hang
        works = WorkMeter(engine.processes)
        self._watchdog = Watchdog(engine.ping, works, limits, tick_seconds=tick_seconds)

    @property
    def stalled(self) -> bool:
        """Whether the engine should get no requests for now."""
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


_LEAST_SECONDS = 0.1
# An engine rests when it has had nothing to do for so long: a pause between short requests is no rest.
_REST_SECONDS = 0.25


class WorkerStatus:
    """info does not change within an incarnation."""

    def __init__(
        self, info: common_pb2.WorkerInfo, engine: Engine, metrics: WorkerMetrics, watch: EngineHealth
    ) -> None:
        self.info = info
        self._engine = engine
        self._metrics = metrics
        self._watch = watch
        self._change = asyncio.Event()
        self._rest: asyncio.TimerHandle | None = None
        metrics.engine.silent_seconds.set_function(lambda: watch.silent_seconds)

    async def load(self) -> EngineLoad:
        """Returns the engine's load, and updates the metrics."""
        load = await self._engine.load()
        load.stalled = self._watch.stalled
        self._metrics.record_load(load)
        return load

    def changed(self) -> None:
        """Wakes `wait_for_change`: the state of an adapter has changed."""
        self._change.set()

    def pauses(self, has_work: Callable[[], object]) -> None:
        """Nothing runs any more. Wakes `wait_for_change` when the engine has rested for _REST_SECONDS."""
        if self._rest is not None:
            self._rest.cancel()
        self._rest = asyncio.get_running_loop().call_later(_REST_SECONDS, self._rests, has_work)

    def _rests(self, has_work: Callable[[], object]) -> None:
        if not has_work():
            self._change.set()

    async def wait_for_change(self, seconds: float) -> None:
        """Returns when the router should hear of a change, or after `seconds`. It waits for at least
        _LEAST_SECONDS, so that many changes do not cause a heartbeat each."""
        least = min(_LEAST_SECONDS, seconds)
        await asyncio.sleep(least)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds - least):
                await self._change.wait()
        self._change.clear()
