"""What a worker says of itself."""

import asyncio
from contextlib import suppress

from llmserve.core.request import EngineLoad
from llmserve.engines.base import Engine
from llmserve.metrics.worker import WorkerMetrics
from llmserve.rpc.gen.llmserve.v1 import common_pb2
from llmserve.workers.engine_watch import EngineWatch

_LEAST_SECONDS = 0.1


class WorkerStatus:
    """info does not change within an incarnation."""

    def __init__(
        self, info: common_pb2.WorkerInfo, engine: Engine, metrics: WorkerMetrics, watch: EngineWatch
    ) -> None:
        self.info = info
        self._engine = engine
        self._metrics = metrics
        self._watch = watch
        self._rest = asyncio.Event()
        metrics.engine_silent_seconds.set_function(lambda: watch.silent_seconds)

    async def load(self) -> EngineLoad:
        """The engine's; also brings the metrics up to date."""
        load = await self._engine.load()
        load.stalled = self._watch.stalled
        self._metrics.record_load(load)
        return load

    def came_to_rest(self) -> None:
        """Nothing runs any more: whoever waits is to hear of it now."""
        self._rest.set()

    async def until_rest(self, seconds: float) -> None:
        """Returns when the engine has come to rest, or that time is over. It is never shorter than what keeps
        an engine that rests after each of many short requests from being talked about all the time."""
        least = min(_LEAST_SECONDS, seconds)
        await asyncio.sleep(least)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds - least):
                await self._rest.wait()
        self._rest.clear()
