"""One push at the receiving end: reserves, waits, makes sure that writing has ended, and pulls if it must."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from llmserve.core.errors import TransferError
from llmserve.core.ids import RequestId
from llmserve.core.kv_params import BlockTable, PullParams, PushParams
from llmserve.engines.kv_transfer.client import HandoverClient
from llmserve.engines.kv_transfer.peers import Peer
from llmserve.engines.kv_transfer.protocol import (
    AskPush,
    PushOutcome,
    PushStanding,
    PushState,
    Reservation,
    Reserve,
    StopPush,
)
from llmserve.engines.kv_transfer.pull import Pull, PullJob
from llmserve.engines.kv_transfer.push.fence import (
    ReservationTable,
    StopLimits,
    Writes,
    are_on_one_host,
    unclean_after_stop,
)
from llmserve.engines.kv_transfer.rank import PullResult, RankEngine, reached
from llmserve.transfer.devices import Mark

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReceiveLimits:
    """poll_seconds: how often prefill is asked how it stands. total_seconds: the longest wait for it.
    stop: how long a writer may leave it open whether it has stopped. connects: how
    often in a row prefill may be out of reach. serve_seconds: a writer that was let in is served so long
    after the last poll."""

    poll_seconds: float = 1.0
    total_seconds: float = 600.0
    stop: StopLimits = field(default_factory=StopLimits)
    connects: int = 2
    serve_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class ReceiveJob:
    """blocks: are to hold those of the prompt, in all layers."""

    request_id: RequestId
    push_params: PushParams
    blocks: BlockTable


@dataclass(frozen=True, slots=True)
class ReceiveContext:
    """What all receives of a process share. client: pulls when a push fails. fence: over these transports
    nobody writes here any more who was connected."""

    engine: RankEngine
    client: HandoverClient
    table: ReservationTable
    limits: ReceiveLimits
    fence: Callable[[Iterable[str]], None]

    async def ask(self, push_params: PushParams, request: Reserve | AskPush | StopPush) -> PushStanding:
        """Asks the writer. Errors: TransferError."""
        return await (await self.writer(push_params)).ask(request, PushStanding)

    async def writer(self, push_params: PushParams) -> Peer:
        """The prefill rank that writes into this rank. Errors: TransferError."""
        return await self.client.peers.get(push_params.address(self.engine.layout.geometry.shard.rank))


@dataclass(eq=False, slots=True)
class PushReceive:
    """On the loop of its engine; `run` once, as a task of its own. free: the mark behind the kernels that may
    still use the blocks. Prefill does not know of the reservation before."""

    job: ReceiveJob
    reservation: Reservation
    around: ReceiveContext
    free: Mark
    _started: float = field(default_factory=time.monotonic)
    _outcome: PushOutcome | None = None
    _cancelled: bool = False
    _connection: int | None = None  # of the writer
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _pulling: "asyncio.Task[object] | None" = None

    # -- what happens to it

    def begun(self, connection: int) -> None:
        """The writer has been let in."""
        self._connection = connection
        self._serve()

    def deliver(self, outcome: PushOutcome) -> None:
        """The writer has sent its outcome."""
        if self._outcome is None:
            self._outcome = outcome
        self._changed.set()

    def cancel(self) -> None:
        self._cancelled = True
        self._changed.set()
        if self._pulling is not None:
            self._pulling.cancel()

    # -- its life

    async def run(self) -> PullResult:
        """When it returns, nobody writes into the blocks."""
        reason = await self._wait()
        await self._settle()
        if self._outcome is None:
            return self._result(reason)
        if self._outcome.complete:
            return self._arrived(self._outcome)
        return await self._pull_instead(self._outcome)

    def _arrived(self, outcome: PushOutcome) -> PullResult:
        self.around.engine.counters.count_pull(outcome.transport, outcome.bytes, outcome.seconds)
        return replace(
            self._result(""),
            transport=outcome.transport,
            bytes=outcome.bytes,
            seconds=outcome.seconds,
            pushed=True,
        )

    async def _pull_instead(self, outcome: PushOutcome) -> PullResult:
        trouble = f"push: {outcome.reason}"
        if outcome.pull_params is None:
            return self._result(trouble)
        if self._cancelled:
            self.around.client.release(outcome.pull_params)
            return self._result("cancelled")
        result = await self._pull(outcome.pull_params)
        if not result.ok:
            self.around.client.release(outcome.pull_params)
        return replace(
            self._result(result.reason),
            transport=result.transport,
            bytes=result.bytes,
            seconds=result.seconds,
            fallbacks=(trouble, *result.fallbacks),
        )

    async def _pull(self, pull_params: PullParams) -> PullResult:
        job, around = self.job, self.around
        first_token = min(job.blocks.first_blocks) * around.engine.layout.geometry.block_size_tokens
        tokens = range(first_token, job.push_params.num_tokens)
        pull_job = PullJob(job.request_id, pull_params, tokens, job.blocks)
        self._pulling = asyncio.current_task()
        try:
            return await Pull(pull_job, around.client.limits, around.engine, around.client.peers).run()
        finally:
            self._pulling = None

    def _result(self, reason: str) -> PullResult:
        tokens = self._outcome.tokens if self._outcome and self.job.push_params.continues else ()
        return PullResult(
            request_id=self.job.request_id,
            seconds=time.monotonic() - self._started,
            reason=reason,
            tokens=tokens,
        )

    # -- waiting

    async def _wait(self) -> str:
        """Waits until the writer has ended. Returns why it has not; empty when it has."""
        tasks = polling, _ = asyncio.ensure_future(self._poll()), asyncio.ensure_future(self._changed.wait())
        limit = self.around.limits.total_seconds
        try:
            await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        if self._outcome is not None:
            return ""
        if self._cancelled:
            return "cancelled"
        return polling.result() if polling.done() else f"nothing was pushed within {limit:g} s"

    async def _poll(self) -> str:
        """Asks until prefill is out of reach, or says that nothing (more) will come. Returns the reason."""
        transfer_id, failures = self.job.push_params.transfer_id, 0
        request: Reserve | AskPush = Reserve(transfer_id, self.reservation)
        try:
            await reached(self.free)
        except TransferError as error:
            return error.message
        while True:
            try:
                peer = await self.around.writer(self.job.push_params)
                answer = await peer.ask(request, PushStanding)
            except TransferError as error:
                failures += 1
                if failures >= self.around.limits.connects:
                    return error.message
                continue
            request, failures = AskPush(transfer_id), 0
            self._take(answer)
            if answer.state not in (PushState.WAITING, PushState.WRITING):
                return f"the push is {answer.state.value} to prefill"
            self._serve()
            await asyncio.wait((peer.lost,), timeout=self.around.limits.poll_seconds)

    def _take(self, answer: PushStanding) -> None:
        """Takes the outcome that prefill could not send by itself. It still holds the lease of a complete
        push."""
        if answer.outcome is None or self._outcome is not None:
            return
        self.around.table.end(self.reservation.reservation_id, self.around.table.epoch)
        self._outcome = answer.outcome
        if answer.outcome.complete and answer.outcome.pull_params is not None:
            self.around.client.release(answer.outcome.pull_params)

    def _serve(self) -> None:
        if self._connection is not None:
            name = self.reservation.reservation_id
            self.around.engine.expect(self._connection, name, self.around.limits.serve_seconds)

    # -- the end of writing

    async def _settle(self) -> None:
        """Returns when no write into the blocks can be under way."""
        table, reservation_id = self.around.table, self.reservation.reservation_id
        fences = table.fences_at_begin(reservation_id)
        writes = table.close(reservation_id)
        unclean: Iterable[str] = ()
        if writes is Writes.ENDED and self._outcome is not None:
            unclean = self._outcome.unclean
        elif writes is Writes.MAY_GO_ON:
            unclean = await self._stop_writer()
        else:
            self.around.engine.spawn("stop push", self._stop_quietly())
        if self._connection is not None:
            self.around.engine.dismiss(self._connection, reservation_id)
        open_ways = [name for name in unclean if self.around.engine.fences.get(name) == fences.get(name)]
        if open_ways:
            _log.warning("kv push to %s: fencing %s", self.job.request_id, ", ".join(open_ways))
            self.around.fence(open_ways)

    async def _stop_writer(self) -> Iterable[str]:
        limits, engine = self.around.limits, self.around.engine
        writer = self.job.push_params.address(engine.layout.geometry.shard.rank).endpoint
        return await unclean_after_stop(
            self._ask_to_stop,
            tuple(engine.fences),
            limits.stop,
            same_host=are_on_one_host(writer, self.reservation.address.endpoint),
        )

    async def _ask_to_stop(self) -> PushStanding:
        return await self.around.ask(self.job.push_params, StopPush(self.job.push_params.transfer_id))

    async def _stop_quietly(self) -> None:
        with suppress(TransferError):
            await self._ask_to_stop()
