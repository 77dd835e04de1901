"""The receiving end of pushes in a process: decode's."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from llmserve.core.errors import TransferError
from llmserve.core.ids import RequestId, ReservationId, TransferId
from llmserve.core.kv_params import PeerAddress, PushParams
from llmserve.core.lease_table import LeaseAnswer
from llmserve.engines.kv_transfer.client import HandoverClient
from llmserve.engines.kv_transfer.protocol import (
    Answer,
    BeginPush,
    EndPush,
    LeaseIs,
    Reservation,
    Reserve,
    StopPush,
)
from llmserve.engines.kv_transfer.push.fence import ReservationTable, WriterSuspended
from llmserve.engines.kv_transfer.push.receive import PushReceive, ReceiveContext, ReceiveJob, ReceiveLimits
from llmserve.engines.kv_transfer.rank import PullResult, RankEngine, Results
from llmserve.engines.kv_transfer.server import Handlers
from llmserve.transfer.devices import REACHED, Mark

_log = logging.getLogger(__name__)


class PushReceiver:
    """Methods without underscore, but `handlers`, may be called from any thread and never wait for the
    network."""

    def __init__(
        self,
        engine: RankEngine,
        client: HandoverClient,
        home: PeerAddress,
        hang_up: Callable[[], None],
        limits: ReceiveLimits | None = None,
    ) -> None:
        """client: of this process; it pulls when a push fails. home: where prefill reaches this process.
        hang_up: on all peers that are connected to it."""
        self._engine = engine
        self._home = home
        self._hang_up = hang_up
        self._around = ReceiveContext(
            engine=engine,
            client=client,
            table=ReservationTable(home.epoch),
            limits=limits or ReceiveLimits(),
            fence=self._fence,
        )
        self._results = Results(engine.note_change)
        self._receives: dict[RequestId, PushReceive] = {}
        self._by_reservation: dict[ReservationId, PushReceive] = {}
        self._expected: dict[TransferId, asyncio.Task[None]] = {}
        self._reserved = 0

    # -- decode's engine

    def expect(self, push_params: PushParams) -> None:
        """A request came that is to be pushed, and waits for blocks: prefill keeps its KV, until receive
        or forget."""
        self._engine.act(lambda: self._expect(push_params))

    def forget(self, push_params: PushParams) -> None:
        """It is not wanted any more."""
        self._engine.act(lambda: self._forget(push_params))

    def receive(self, job: ReceiveJob, free: Mark = REACHED) -> None:
        """Its blocks are there, and prefill learns of them once `free` is reached. The result comes from
        take_finished, exactly once, and when it does nobody writes into them. Only for a writer on this host
        that stays suspended none comes. Errors: TransferError after `close`."""
        self._results.begin(job.request_id)
        try:
            self._engine.post(lambda: self._start(job, free))
        except TransferError:
            self._results.drop(job.request_id)
            raise

    def cancel(self, request_id: RequestId) -> None:
        """Its result still comes. Unknown ids are ignored."""
        self._engine.act(lambda: self._cancel(request_id))

    def take_finished(self) -> list[PullResult]:
        """Each result once."""
        return self._results.take()

    @property
    def active_count(self) -> int:
        """Reservations whose result has not been produced."""
        return self._results.active_count

    # -- prefill, over the side channel

    @property
    def handlers(self) -> Handlers:
        return {BeginPush: self._begin, EndPush: self._end}

    def _begin(self, connection: int, request: BeginPush) -> Answer:
        answer = self._around.table.begin(request.reservation_id, request.epoch, self._engine.fences)
        if answer is LeaseAnswer.VALID:
            self._by_reservation[request.reservation_id].begun(connection)
        return LeaseIs(answer)

    def _end(self, _: int, request: EndPush) -> Answer:
        answer = self._around.table.end(request.reservation_id, request.epoch)
        if answer is LeaseAnswer.VALID:
            self._by_reservation[request.reservation_id].deliver(request.outcome)
        return LeaseIs(answer)

    # -- on the loop

    def _start(self, job: ReceiveJob, free: Mark) -> None:
        self._stop_expecting(job.push_params)
        self._reserved += 1
        reservation_id = ReservationId(f"{self._home.epoch:x}.{self._reserved:x}.{job.request_id}")
        reservation = Reservation(reservation_id, self._home, job.blocks)
        receive = PushReceive(job, reservation, self._around, free)
        self._around.table.open(reservation_id)
        self._receives[job.request_id] = self._by_reservation[reservation_id] = receive
        self._engine.spawn(f"receive {job.request_id}", self._run(receive))

    async def _run(self, receive: PushReceive) -> None:
        try:
            result = await receive.run()
        except WriterSuspended as error:
            _log.error(
                "kv push to %s: %s; its blocks are lost until this worker restarts",
                receive.job.request_id,
                error.message,
            )
            return
        if not result.ok:
            self._engine.counters.failed_pulls += 1
        _log.info("kv push %s: %s", "complete" if result.ok else "failed", result)
        del self._receives[result.request_id]
        del self._by_reservation[receive.reservation.reservation_id]
        self._results.conclude(result)

    def _cancel(self, request_id: RequestId) -> None:
        if receive := self._receives.get(request_id):
            receive.cancel()

    def _expect(self, push_params: PushParams) -> None:
        self._stop_expecting(push_params)
        self._expected[push_params.transfer_id] = self._engine.spawn(
            "expect push", self._keep_expecting(push_params)
        )

    def _stop_expecting(self, push_params: PushParams) -> None:
        if task := self._expected.pop(push_params.transfer_id, None):
            task.cancel()

    def _forget(self, push_params: PushParams) -> None:
        self._stop_expecting(push_params)
        self._engine.spawn("forget push", self._ask(push_params, StopPush(push_params.transfer_id)))

    async def _keep_expecting(self, push_params: PushParams) -> None:
        while True:
            await self._ask(push_params, Reserve(push_params.transfer_id))
            await asyncio.sleep(self._around.limits.poll_seconds)

    async def _ask(self, push_params: PushParams, request: Reserve | StopPush) -> None:
        """Best effort: whoever reserves finds out what is the matter."""
        with suppress(TransferError):
            await self._around.ask(push_params, request)

    def _fence(self, transports: Iterable[str]) -> None:
        """Everybody connects again, and so learns how to reach the memory now."""
        self._engine.fence(transports)
        self._hang_up()
        self._around.client.peers.hang_up("the memory was fenced")
