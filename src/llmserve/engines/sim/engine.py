"""SimEngine: the Engine contract (engines/base.py) without a model."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from llmserve.core.errors import EngineDead, InvalidRequest, StartFailed, TransferError
from llmserve.core.ids import AdapterDigest, RequestId
from llmserve.core.kv_params import PullParams, PushParams, check_params, for_adapter, is_pushed
from llmserve.core.request import (
    EngineLoad,
    EngineOutput,
    EngineRequest,
    FinishReason,
    KvEvents,
    KvPeer,
    WorkerRole,
)
from llmserve.core.tasks import TaskOwner
from llmserve.engines.base import EngineInfo
from llmserve.engines.kv_transfer import PullResult
from llmserve.engines.sim.adapters import SimAdapters
from llmserve.engines.sim.drawing import TokenDrawing
from llmserve.engines.sim.kv_handover import KvHandover
from llmserve.engines.sim.limits import SimLimits
from llmserve.engines.sim.link import KvSource, SimLink
from llmserve.engines.sim.memory import KvMemory
from llmserve.engines.sim.pool import BlockPool
from llmserve.engines.sim.scheduler import SimScheduler
from llmserve.engines.sim.sequence import SimSequence
from llmserve.engines.sim.step import Step, StepTimer, Timing
from llmserve.engines.spec import EngineSpec, computation_words

_log = logging.getLogger(__name__)

OpenLink = Callable[[EngineSpec, KvMemory], Awaitable[SimLink]]


class SimEngine:
    """open_link: connects it to the engines with which it exchanges KV. timer: how time passes."""

    def __init__(self, spec: EngineSpec, open_link: OpenLink, timer: StepTimer) -> None:
        self._spec = spec
        self._open_link = open_link
        self._timer = timer
        self._limits = SimLimits.of(spec)
        sim = spec.engine.sim
        self._pool = BlockPool(sim.blocks)
        self._scheduler = SimScheduler[SimSequence](self._pool, self._limits.batch)
        self._drawing = TokenDrawing(spec, self._scheduler, self._write, self._limits.max_model_len)
        self._timing = Timing(
            sim.prefill_tokens_per_second, sim.decode_step_seconds, sim.decode_seconds_per_sequence
        )
        self._adapters = SimAdapters(spec.lora.slots, sim.adapter_load_seconds, timer)
        self._memory: KvMemory | None = None
        self._link: SimLink | None = None
        self._tasks: TaskOwner | None = None
        self._outputs: list[EngineOutput] = []
        self._is_idle = False  # to be reported
        self._reported_blocks: int | None = None
        self._delivered = asyncio.Event()
        self._work = asyncio.Event()
        self._kv_changed = asyncio.Event()

    # -- life

    async def start(self) -> EngineInfo:
        self._memory = KvMemory(self._pool.total_blocks, self._limits.block_size_tokens)
        try:
            self._link = await self._open_link(self._spec, self._memory)
        except (OSError, TransferError) as error:
            raise StartFailed(f"the simulated engine cannot hand KV over: {error}") from error
        self._handing = KvHandover(self._spec, self._link, self._memory, self._pool)
        self._tasks = TaskOwner(f"sim-{self._spec.worker_id}")
        self._tasks.spawn("steps", self._run(), fatal=True)
        self._tasks.spawn("handover", self._tend(self._link), fatal=True)
        self._tasks.failed.add_done_callback(lambda _: self._delivered.set())
        return EngineInfo(
            kv_dtype="sim",
            layout="sim",
            computation=computation_words("sim", self._limits.max_model_len),
            block_size_tokens=self._limits.block_size_tokens,
            block_bytes=self._memory.block_bytes,
            total_blocks=self._pool.total_blocks,
            max_model_len_tokens=self._limits.max_model_len,
            max_concurrency=self._limits.batch.max_concurrency,
            transports=self._link.transports,
            handover_endpoints=(self._link.endpoint,),
            lora=self._spec.lora,
        )

    async def profile(self, seconds: float) -> Sequence[Path]:
        raise InvalidRequest("the simulated engine computes nothing that a profiler of torch would see")

    async def aclose(self) -> None:
        if self._tasks is not None:
            await self._tasks.aclose()
            self._delivered.set()
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _check_alive(self) -> None:
        if self._tasks is None or self._tasks.failed.done():
            raise EngineDead("the simulated engine is not running")

    # -- requests

    async def add(self, request: EngineRequest) -> None:
        self._check_alive()
        self._limits.check(request)
        self._adapters.check(request.adapter)
        if self._scheduler.has(request.request_id) or self._handing.holds(request.request_id):
            raise InvalidRequest(f"request id {request.request_id} is in use")
        request = self._checked(request)
        ticket = self._ticket(request)
        sequence = SimSequence(
            request, ticket, self._limits.block_size_tokens, self._spec.engine.sim.vocab_size
        )
        if ticket is not None:
            self._linked().watch(ticket)
        self._handing.announce(sequence)
        self._scheduler.add(sequence)
        self._work.set()

    def _checked(self, request: EngineRequest) -> EngineRequest:
        params, adapter = request.kv_transfer_params, request.adapter
        try:
            check_params(params, len(request.prompt_token_ids), adapter)
        except TransferError as error:
            raise InvalidRequest(error.message) from error
        return replace(request, kv_transfer_params=for_adapter(params, adapter))

    def _ticket(self, request: EngineRequest) -> KvSource | None:
        params = request.kv_transfer_params
        if not params or not params.get("do_remote_prefill"):
            return None
        return PushParams.from_params(params) if is_pushed(params) else PullParams.from_params(params)

    async def load_adapter(self, digest: AdapterDigest, path: Path) -> None:
        self._check_alive()
        await self._adapters.load(digest, path)

    async def unload_adapter(self, digest: AdapterDigest, *, forget_blocks: bool = False) -> None:
        self._check_alive()
        self._adapters.unload(digest)
        if forget_blocks:
            self._pool.forget(digest)
            self._note_kv_changes()

    async def abort(self, request_ids: Sequence[RequestId]) -> None:
        for request_id in request_ids:
            sequence = self._scheduler.abort(request_id)
            if sequence is None:
                continue
            self._handing.drop(sequence)
            if sequence.ticket is not None:
                self._linked().release(sequence.ticket)
            elif self._scheduler.has(request_id):
                self._linked().cancel(request_id)
        self._work.set()

    async def next_outputs(self) -> Sequence[EngineOutput]:
        while not self._outputs and not self._is_idle:
            self._check_alive()
            self._delivered.clear()
            await self._delivered.wait()
        outputs, self._outputs, self._is_idle = self._outputs, [], False
        return outputs

    async def next_kv_events(self) -> KvEvents:
        while True:
            await self._kv_changed.wait()
            self._kv_changed.clear()
            blocks = self._pool.take_events()
            leases = self._link.take_changes() if self._link is not None else ()
            if blocks.stored or blocks.removed or leases:
                return KvEvents(blocks.stored, blocks.removed, leases=leases)

    async def load(self) -> EngineLoad:
        if self._link is None:
            return EngineLoad()
        self._free_ended()  # includes leases that only expired
        load = self._link.load()
        return replace(
            load,
            running_requests=self._scheduler.running_requests,
            waiting_requests=self._scheduler.waiting_requests,
            used_blocks=self._pool.used_blocks,
            pairs=() if self._spec.role is WorkerRole.PREFILL else load.pairs,
            speculation=self._drawing.report(),
        )

    async def ping(self) -> None:
        self._check_alive()
        await asyncio.sleep(0)  # the engine runs on this event loop

    def processes(self) -> Collection[int]:
        return ()

    async def set_peers(self, peers: Sequence[KvPeer]) -> None:
        self._linked().set_peers(peers)

    # -- the loop

    async def _run(self) -> None:
        while True:
            self._work.clear()
            step = self._scheduler.plan()
            self._order_transfers(step)
            if step.work:
                self._reported_blocks = None
                seconds = self._timing.step_seconds(step.prefill_tokens, step.decode_sequences)
                seconds = self._drawing.began(step, seconds)
                await self._timer.sleep_until(self._timer.now() + seconds)
                self._commit(step)
            else:
                self._report_idle()
                await self._work.wait()

    def _report_idle(self) -> None:
        """Reports idleness once for each number of held blocks, which other engines may still fetch."""
        held = self._pool.used_blocks
        is_idle = not (self._scheduler.running_requests or self._scheduler.waiting_requests)
        if is_idle and held != self._reported_blocks:
            self._reported_blocks, self._is_idle = held, True
            self._delivered.set()

    def _order_transfers(self, step: Step[SimSequence]) -> None:
        for ticket in step.releases:
            self._linked().release(ticket)
        for order in step.pulls:
            self._handing.start(order)
        if self._pool.has_events():
            self._note_kv_changes()

    def _commit(self, step: Step[SimSequence]) -> None:
        committed = self._scheduler.commit(step)
        self._write(committed.filled)
        for sequence, count in committed.advanced:
            self._handing.computed(sequence, count)
        for sequence in committed.complete:
            self._deliver(self._advance(sequence))
        self._drawing.ended(step)
        if self._pool.has_events():
            self._note_kv_changes()

    def _write(self, filled: Iterable[tuple[SimSequence, int]]) -> None:
        assert self._memory is not None, "the loop ends before the memory is closed"
        for sequence, index in filled:
            tokens = sequence.tokens_of(index)
            self._memory.write(sequence.blocks[index : index + 1], tokens, sequence.content(tokens))

    def _advance(self, sequence: SimSequence) -> EngineOutput:
        is_first = sequence.output_tokens == 0
        tokens, reason = self._drawing.draw(sequence)
        return EngineOutput(
            request_id=sequence.request_id,
            token_ids=tokens,
            finish_reason=reason,
            stop_reason=tokens[-1] if reason is FinishReason.STOP else None,
            kv_transfer_params=None if reason is None else self._finish(sequence, reason),
            prefill_stats=sequence.prefill_stats if is_first else None,
            handover=sequence.handover if is_first else None,
            acceptance=None if reason is None else self._drawing.acceptance(sequence),
        )

    def _finish(self, sequence: SimSequence, reason: FinishReason) -> dict[str, object] | None:
        """Ends a sequence. Only a prefill that reached its token limit is handed over: one that met a stop
        token has no decode."""
        blocks = self._scheduler.finish(sequence)
        if sequence.hands_over and reason is FinishReason.LENGTH:
            self._note_kv_changes()
            return self._handing.grant(sequence, blocks).to_params()
        self._handing.drop(sequence)
        self._pool.release(blocks)
        return None

    def _deliver(self, output: EngineOutput) -> None:
        self._outputs.append(output)
        self._delivered.set()

    # -- transfers

    async def _tend(self, link: SimLink) -> None:
        while True:
            await link.changed.wait()
            link.changed.clear()
            self._free_ended()
            for result in self._handing.take_pulled():
                self._pull_ended(result)
            self._work.set()

    def _free_ended(self) -> None:
        if self._handing.free_ended():
            self._work.set()
        self._note_kv_changes()

    def _pull_ended(self, result: PullResult) -> None:
        sequence = self._scheduler.pull_ended(result.request_id, result.ok, result.tokens)
        if sequence is None:
            return
        sequence.handover = result.report
        if result.ok:
            return
        _log.warning("loading KV failed: request=%s: %s", result.request_id, result.reason)
        if self._spec.transfer.on_failure == "fail":
            self._pool.release(self._scheduler.finish(sequence))
            error = f"loading KV failed: {result.reason}"
            self._deliver(
                EngineOutput(
                    result.request_id,
                    finish_reason=FinishReason.ERROR,
                    error=error,
                    handover=result.report,
                )
            )

    def _note_kv_changes(self) -> None:
        """Wakes next_kv_events, which looks for changes."""
        self._kv_changed.set()

    def _linked(self) -> SimLink:
        if self._link is None:
            raise EngineDead("the simulated engine is closed")
        return self._link
