"""What a worker says of itself."""

from llmserve.core.request import EngineLoad
from llmserve.engines.base import Engine
from llmserve.metrics.worker import WorkerMetrics
from llmserve.rpc.gen.llmserve.v1 import common_pb2
from llmserve.workers.engine_watch import EngineWatch


class WorkerStatus:
    """info does not change within an incarnation."""

    def __init__(
        self, info: common_pb2.WorkerInfo, engine: Engine, metrics: WorkerMetrics, watch: EngineWatch
    ) -> None:
        self.info = info
        self._engine = engine
        self._metrics = metrics
        self._watch = watch
        metrics.engine_silent_seconds.set_function(lambda: watch.silent_seconds)

    async def load(self) -> EngineLoad:
        """The engine's; also brings the metrics up to date."""
        load = await self._engine.load()
        load.stalled = self._watch.stalled
        self._metrics.record_load(load)
        return load
