"""The rest of an engine that has nothing to compute while KV is under way, or while a lease holds its blocks.

After a step without tokens, vLLM sleeps for a millisecond, also after the step in which KV has arrived. Here
it sleeps until a request, KV or the end of a lease comes, for at most 3 ms at a time (1 ms beside a KV store,
which announces nothing), and not at all after a step that has brought one.
That needs the rank of the model in the engine's own process; where ranks have processes of their own, they
wait instead (`WorkerSide.wait_for_kv`).
"""

import inspect
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequestType
    from vllm.v1.engine.core import EngineCoreProc

    from llmserve.engines.connector.worker_side import WorkerSide

_log = logging.getLogger(__name__)
EMPTY_STEP_SECONDS = 0.003  # longer, and what nothing announces (a grammar, an expired lease) is seen late
_NAP_SECONDS = 0.001  # vLLM's own
_WRITTEN = """\
        if not model_executed and self.scheduler.has_requests():
            time.sleep(0.001)

        return model_executed
"""


def install(
    core: "type[EngineCoreProc]",
    rank_here: "Callable[[], WorkerSide | None]",
    wake_up: "EngineCoreRequestType",
) -> None:
    """Called in the process of an EngineCore, before its first request. rank_here: returns the rank that runs
    in this process, if there is one. wake_up: the request that does nothing. A vLLM whose step is written
    otherwise is left as it is."""
    if _WRITTEN not in inspect.getsource(core._process_engine_step):
        _log.warning("vLLM's engine rests as it is written there: a hand-over takes 3 ms longer")
        return

    def _process_engine_step(self: "EngineCoreProc") -> bool:
        """vLLM's own, but for the last lines."""
        outputs, model_executed = self.step_fn()
        for output in outputs.items() if outputs else ():
            self.output_queue.put_nowait(output)
        self.post_step(model_executed)
        if not model_executed and self.scheduler.has_requests():
            rest(self, rank_here(), wake_up)
        return bool(model_executed)

    core._process_engine_step = _process_engine_step


def rest(core: "EngineCoreProc", rank: "WorkerSide | None", wake_up: "EngineCoreRequestType") -> None:
    """Returns when there may be something to do, or after EMPTY_STEP_SECONDS. With several steps in flight
    (`batch_queue`), the next one may have something that nothing announces."""
    if rank is None:
        time.sleep(_NAP_SECONDS)
        return
    waiting = core.input_queue
    rank.rest_between_steps(lambda: waiting.put_nowait((wake_up, None)))
    if rank.took_change:
        return
    may_rest = rank.awaits_change and core.batch_queue is None
    with waiting.not_empty:
        if not waiting.queue:
            waiting.not_empty.wait(EMPTY_STEP_SECONDS if may_rest else _NAP_SECONDS)
