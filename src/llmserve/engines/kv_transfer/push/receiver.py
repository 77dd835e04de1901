"""The receiving end of pushes in a process: decode's."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from llmserve.core.errors import TransferError
from llmserve.core.fields import object_of
from llmserve.core.ids import RequestId, ReservationId, TransferId
from llmserve.core.kv_params import PeerAddress, PushParams
from llmserve.core.lease_table import LeaseAnswer
from llmserve.engines.kv_transfer import wire
from llmserve.engines.kv_transfer.client import HandoverClient
from llmserve.engines.kv_transfer.io import HandoverIo
from llmserve.engines.kv_transfer.pull import PullResult
from llmserve.engines.kv_transfer.push.messages import PushOutcome, Reservation, reservation_of
from llmserve.engines.kv_transfer.push.receive import PushReceive, ReceiveContext, ReceiveJob, ReceiveLimits
from llmserve.engines.kv_transfer.push.reservations import ReservationTable
from llmserve.engines.kv_transfer.results import Results

_log = logging.getLogger(__name__)


class PushReceiver:
    """Methods without underscore, but `operations`, may be called from any thread and never wait for the
    network."""

    def __init__(
        self,
        io: HandoverIo,
        client: HandoverClient,
        home: PeerAddress,
        hang_up: Callable[[], None],
        limits: ReceiveLimits | None = None,
    ) -> None:
        """client: of this process; it pulls when a push fails. home: where prefill reaches this process.
        hang_up: on all peers that are connected to it."""
        self._io = io
        self._client = client
        self._home = home
        self._hang_up = hang_up
        self._around = ReceiveContext(
            io=io,
            peers=client.peers,
            table=ReservationTable(home.epoch),
            limits=limits or ReceiveLimits(),
            pull_limits=client.limits,
            on_transfer_failed=client.trouble,
            fence=self._fence,
            release=client.release,
        )
        self._results = Results(io.ended)
        self._receives: dict[RequestId, PushReceive] = {}
        self._by_reservation: dict[ReservationId, PushReceive] = {}
        self._expected: dict[TransferId, asyncio.Task[None]] = {}
        self._reserved = 0

    # -- decode's engine

    def expect(self, push_params: PushParams) -> None:
        """A request came that is to be pushed, and waits for blocks: prefill keeps its KV, until receive
        or forget."""
        self._post(lambda: self._expect(push_params))

    def forget(self, push_params: PushParams) -> None:
        """It is not wanted any more."""
        self._post(lambda: self._forget(push_params))

    def receive(self, job: ReceiveJob) -> None:
        """Its blocks are there. The result comes from take_finished, exactly once, and when it does nobody
        writes into them. Errors: TransferError after `close`."""
        self._results.begin(job.request_id)
        try:
            self._io.post(lambda: self._start(job))
        except TransferError:
            self._results.drop(job.request_id)
            raise

    def cancel(self, request_id: RequestId) -> None:
        """Its result still comes. Unknown ids are ignored."""
        self._post(lambda: self._cancel(request_id))

    def take_finished(self) -> list[PullResult]:
        """Each result once."""
        return self._results.take()

    @property
    def active_count(self) -> int:
        """Reservations whose result has not been produced."""
        return self._results.active_count

    # -- prefill, over the side channel

    @property
    def operations(self) -> Mapping[str, Callable[[int, wire.Message], wire.Message]]:
        return {"begin_push": self._begin, "pushed": self._pushed}

    def _begin(self, connection: int, message: wire.Message) -> wire.Message:
        reservation_id, epoch = reservation_of(message)
        answer = self._around.table.begin(reservation_id, epoch, self._io.fences)
        if answer is LeaseAnswer.VALID:
            self._by_reservation[reservation_id].begun(connection)
        return {"ok": True, "lease": answer.value}

    def _pushed(self, _: int, message: wire.Message) -> wire.Message:
        reservation_id, epoch = reservation_of(message)
        outcome = PushOutcome.from_message(object_of(message, "outcome"))
        answer = self._around.table.end(reservation_id, epoch)
        if answer is LeaseAnswer.VALID:
            self._by_reservation[reservation_id].deliver(outcome)
        return {"ok": True, "lease": answer.value}

    # -- on the loop

    def _post(self, action: Callable[[], object]) -> None:
        with suppress(TransferError):  # closed: there is nothing left to act on
            self._io.post(action)

    def _start(self, job: ReceiveJob) -> None:
        self._stop_expecting(job.push_params)
        self._reserved += 1
        reservation_id = ReservationId(f"{self._home.epoch:x}.{self._reserved:x}.{job.request_id}")
        reservation = Reservation(reservation_id, self._home, job.first_block, job.local_block_ids)
        receive = PushReceive(job, reservation, self._around)
        self._around.table.open(reservation_id)
        self._receives[job.request_id] = self._by_reservation[reservation_id] = receive
        self._io.spawn(f"receive {job.request_id}", self._run(receive))

    async def _run(self, receive: PushReceive) -> None:
        result = await receive.run()
        if not result.ok:
            self._io.counters.failed_pulls += 1
        _log.info("kv push %s: %s", "complete" if result.ok else "failed", result)
        del self._receives[result.request_id]
        del self._by_reservation[receive.reservation.reservation_id]
        self._results.conclude(result)

    def _cancel(self, request_id: RequestId) -> None:
        if receive := self._receives.get(request_id):
            receive.cancel()

    def _expect(self, push_params: PushParams) -> None:
        self._stop_expecting(push_params)
        self._expected[push_params.transfer_id] = self._io.spawn(
            "expect push", self._keep_expecting(push_params)
        )

    def _stop_expecting(self, push_params: PushParams) -> None:
        if task := self._expected.pop(push_params.transfer_id, None):
            task.cancel()

    def _forget(self, push_params: PushParams) -> None:
        self._stop_expecting(push_params)
        self._io.spawn("forget push", self._ask(push_params, "stop_push"))

    async def _keep_expecting(self, push_params: PushParams) -> None:
        while True:
            await self._ask(push_params, "reserve")
            await asyncio.sleep(self._around.limits.poll_seconds)

    async def _ask(self, push_params: PushParams, operation: str) -> None:
        """Best effort: whoever reserves finds out what is the matter."""
        with suppress(TransferError):
            peer = await self._client.peers.get(push_params.address(self._io.layout.geometry.shard.rank))
            await peer.ask(operation, {"transfer_id": push_params.transfer_id})

    def _fence(self, transports: Iterable[str]) -> None:
        """Everybody connects again, and so learns how to reach the memory now."""
        self._io.fence(transports)
        self._hang_up()
        self._client.peers.hang_up("the memory was fenced")
