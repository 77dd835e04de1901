"""Deadlines of the stages of a request."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from llmserve.config.schema import Scheduling
from llmserve.core.errors import WorkerStalled
from llmserve.core.request import EngineOutput

_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StageLimits:
    """All in seconds. request: all in all. admission: for the router's answer, queueing included.
    first_token: from a leg's start to its first output. token: from one output to the next."""

    request: float = 600.0
    admission: float = 90.0
    first_token: float = 120.0
    token: float = 60.0

    @classmethod
    def of(cls, scheduling: Scheduling) -> "StageLimits":
        """For its answer the router has what a request may wait, and as long as it may be away itself."""
        waiting = scheduling.queue_timeout_seconds + scheduling.router_patience_seconds
        return cls(
            request=scheduling.request_timeout_seconds,
            admission=waiting + _ANSWER_SECONDS,
            first_token=scheduling.first_token_timeout_seconds,
            token=scheduling.token_timeout_seconds,
        )


class Timely:
    """The outputs of a leg on this worker, each within its time: the first, and those after it."""

    def __init__(
        self, outputs: AsyncIterator[EngineOutput], worker_id: str, first_seconds: float, next_seconds: float
    ) -> None:
        self._outputs, self._worker_id = outputs, worker_id
        self._limit, self._next_seconds = first_seconds, next_seconds

    def __aiter__(self) -> "Timely":
        return self

    async def __anext__(self) -> EngineOutput:
        """Errors: WorkerStalled; those of the leg."""
        try:
            async with asyncio.timeout(self._limit):
                output = await anext(self._outputs)
        except TimeoutError as error:
            seconds = f"{self._limit:g} s"
            raise WorkerStalled(f"the worker {self._worker_id} gave no output within {seconds}") from error
        self._limit = self._next_seconds
        return output
