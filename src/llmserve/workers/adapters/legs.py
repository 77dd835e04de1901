"""The legs of an engine, each of which has its adapter in a device slot for as long as the engine has it."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from llmserve.core.adapters import AdapterLoad
from llmserve.core.errors import LLMServeError
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput, EngineRequest
from llmserve.core.tasks import TaskOwner
from llmserve.engines.base import Engine
from llmserve.workers.adapters.pool import AdapterPool

_log = logging.getLogger(__name__)

OnError = Callable[[LLMServeError], None]


@dataclass(eq=False, slots=True)
class _AdapterLeg:
    """waits: the leg waits for its adapter, and the engine does not know it yet. added: is set when the
    engine has the leg, or will never get it. over: is set when the engine does not have the leg any more.
    load: how its adapter was loaded, which its first output tells."""

    waits: bool = True
    added: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    load: AdapterLoad | None = None
    task: asyncio.Task[None] | None = None

    def give_up(self) -> None:
        if self.task is not None:
            self.task.cancel()


class EngineLegs:
    """Stands between a worker's service and its engine. Requests without an adapter go straight through.
    open_legs: the legs with an adapter, by request."""

    def __init__(self, engine: Engine, pool: AdapterPool, tasks: TaskOwner) -> None:
        self.engine, self._pool, self._tasks = engine, pool, tasks
        self.open_legs: dict[RequestId, _AdapterLeg] = {}

    async def add(self, request: EngineRequest, on_error: OnError) -> None:
        """Hands a request to the engine. With an adapter it returns at once, and the engine gets the request
        when the adapter is loaded. on_error: is called when the engine does not get the request or refuses
        it, unless it was aborted before."""
        if request.adapter:
            leg = self.open_legs[request.request_id] = _AdapterLeg()
            leg.task = self._tasks.spawn("leg", self._run(leg, request, on_error))
            return
        try:
            await self.engine.add(request)
        except Exception as error:
            on_error(_of_request(error))

    async def _run(self, leg: _AdapterLeg, request: EngineRequest, on_error: OnError) -> None:
        try:
            async with self._pool.hold(request.adapter) as leg.load:
                leg.waits = False
                await self.engine.add(request)
                leg.added.set()
                await leg.over.wait()
        except Exception as error:
            if self.open_legs.get(request.request_id) is leg:
                del self.open_legs[request.request_id]
                on_error(_of_request(error))
        finally:
            leg.added.set()

    def outputs(self, outputs: Sequence[EngineOutput]) -> Sequence[EngineOutput]:
        """Called with the outputs of each step, of all requests, while any leg is open. Returns them;
        the first one of each open leg tells how its adapter was loaded."""
        return [self._passed(output) for output in outputs]

    def _passed(self, output: EngineOutput) -> EngineOutput:
        leg = self.open_legs.get(output.request_id)
        if leg is None:
            return output
        if output.finish_reason is not None:
            del self.open_legs[output.request_id]
            leg.over.set()
        load, leg.load = leg.load, None
        return output if load is None else replace(output, adapter_load=load)

    async def abort(self, request_ids: Sequence[RequestId]) -> None:
        """Does what Engine.abort does, also for legs that wait for their adapter."""
        legs = [leg for one in request_ids if (leg := self.open_legs.pop(one, None)) is not None]
        for leg in legs:
            if leg.waits:
                leg.give_up()
            else:
                await leg.added.wait()  # else the engine would get it after the abort
        try:
            await self.engine.abort(request_ids)
        finally:
            for leg in legs:
                leg.over.set()

    def lost(self) -> None:
        """Called when the engine is dead, so that no leg waits for it any more."""
        for leg in self.open_legs.values():
            leg.give_up()
        self.open_legs.clear()


def _of_request(error: Exception) -> LLMServeError:
    """An error that nobody foresaw is one of its request alone, too: the stream brings other requests."""
    if isinstance(error, LLMServeError):
        return error
    _log.error("the engine did not take a request", exc_info=error)
    return LLMServeError(f"the engine did not take the request: {error!r}")
