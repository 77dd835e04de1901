"""What ends a placement, and lets another worker go on."""

from llmserve.core.errors import LLMServeError
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo


class WorkerFailed(Exception):
    """A leg ended badly; another worker may do better."""

    def __init__(self, worker: WorkerInfo, error: LLMServeError) -> None:
        super().__init__(error.message)
        self.worker, self.error = worker, error
