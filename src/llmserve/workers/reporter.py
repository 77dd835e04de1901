"""Tells each KV manager what this worker holds: KVManager.Report, a snapshot and then changes.

One report is on its way at a time; what changes meanwhile merges into the next. A broken stream
begins again with a snapshot, so nothing has to be kept for it.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import grpc.aio

from llmserve.core.clock import Clock
from llmserve.core.errors import Unavailable
from llmserve.core.ids import LeaseId
from llmserve.core.lease import LeaseChange, LeaseState
from llmserve.core.request import KvEvents
from llmserve.engines.base import Engine
from llmserve.rpc.backoff import Backoff
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, kvmanager_pb2_grpc


@dataclass(frozen=True, slots=True)
class Report:
    """One KvReport (kvmanager.proto). Applied in the order: cleared, removed, stored."""

    sequence: int
    snapshot: bool
    stored: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()
    cleared: bool = False
    leases: tuple[LeaseChange, ...] = ()


@dataclass(frozen=True, slots=True)
class _OpenLease:
    change: LeaseChange
    until: float


class Residency:
    """Sequence numbers count the reports of an incarnation, from 1."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._blocks: dict[bytes, None] = {}
        self._leases: dict[LeaseId, _OpenLease] = {}
        self._sequence = 0
        self._stored: dict[bytes, None] = {}
        self._removed: dict[bytes, None] = {}
        self._cleared = False
        self._changes: list[LeaseChange] = []

    @property
    def device_blocks(self) -> int:
        return len(self._blocks)

    @property
    def has_changes(self) -> bool:
        return bool(self._stored or self._removed or self._cleared or self._changes)

    def apply(self, events: KvEvents) -> None:
        if events.cleared:
            self._clear()
        for block_hash in events.removed:
            self._blocks.pop(block_hash, None)
            self._stored.pop(block_hash, None)
            self._removed[block_hash] = None
        for block_hash in events.stored:
            self._blocks[block_hash] = None
            self._stored[block_hash] = None
        for change in events.leases:
            self._apply_lease(change)

    def _clear(self) -> None:
        self._blocks, self._stored, self._removed = {}, {}, {}
        self._cleared = True

    def _apply_lease(self, change: LeaseChange) -> None:
        self._changes.append(change)
        if change.state is LeaseState.GRANTED:
            self._leases[change.lease_id] = _OpenLease(change, self._clock.now() + change.remaining_seconds)
        else:
            self._leases.pop(change.lease_id, None)

    def take_delta(self) -> Report:
        """What changed since the last report."""
        report = Report(
            sequence=self._next_sequence(),
            snapshot=False,
            stored=tuple(self._stored),
            removed=tuple(self._removed),
            cleared=self._cleared,
            leases=tuple(self._changes),
        )
        self._forget_changes()
        return report

    def take_snapshot(self) -> Report:
        """The whole truth; changes up to now are part of it."""
        now = self._clock.now()
        leases = tuple(
            replace(lease.change, remaining_seconds=max(0.0, lease.until - now))
            for lease in self._leases.values()
        )
        self._forget_changes()
        return Report(self._next_sequence(), True, stored=tuple(self._blocks), leases=leases)

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _forget_changes(self) -> None:
        self._stored, self._removed, self._cleared, self._changes = {}, {}, False, []


_log = logging.getLogger(__name__)

_ACK_SECONDS = 10.0
_MIN_INTERVAL_SECONDS = 0.05

_STATES = {
    LeaseState.GRANTED: kvmanager_pb2.LEASE_STATE_GRANTED,
    LeaseState.RELEASED: kvmanager_pb2.LEASE_STATE_RELEASED,
    LeaseState.EXPIRED: kvmanager_pb2.LEASE_STATE_EXPIRED,
}


class KvReporter:
    """To one KV manager. `apply` never waits; `run` is a task of the worker."""

    def __init__(self, worker_id: str, epoch: int, residency: Residency, channel: grpc.aio.Channel) -> None:
        self._worker_id = worker_id
        self._epoch = epoch
        self._residency = residency
        self._stub = kvmanager_pb2_grpc.KVManagerStub(channel)  # type: ignore[no-untyped-call]  # generated
        self._changed = asyncio.Event()

    def apply(self, events: KvEvents) -> None:
        self._residency.apply(events)
        self._changed.set()

    async def run(self) -> None:
        """For ever; the manager may come and go."""
        backoff = Backoff()
        while True:
            try:
                await self._report(backoff)
            except (grpc.aio.AioRpcError, Unavailable, TimeoutError) as error:
                _log.warning("reports to the KV manager stopped, trying again: %s", _brief(error))
            await backoff.pause()

    async def _report(self, backoff: Backoff) -> None:
        call = self._stub.Report()
        call.add_done_callback(lambda _: self._changed.set())
        try:
            report = self._residency.take_snapshot()
            while True:
                resync = await self._send(call, report)
                backoff.reset()
                report = await self._next(call, resync)
        finally:
            call.cancel()

    async def _send(self, call: "_Call", report: Report) -> bool:
        """Returns whether the manager asks for a snapshot."""
        async with asyncio.timeout(_ACK_SECONDS):
            try:
                await call.write(self._encode(report))
                answer = await call.read()
            except asyncio.InvalidStateError as error:  # gRPC's word for: it has ended already
                raise Unavailable("the stream to the KV manager broke") from error
        if not isinstance(answer, kvmanager_pb2.KvReportAck):
            raise Unavailable("the KV manager closed the stream")
        return bool(answer.resync)

    async def _next(self, call: "_Call", resync: bool) -> Report:
        """Waits for something to tell. A stream that breaks meanwhile is noticed, since the manager
        that comes back needs a snapshot. Errors: Unavailable."""
        if resync:
            _log.info("the KV manager asks for a snapshot")
            return self._residency.take_snapshot()
        await asyncio.sleep(_MIN_INTERVAL_SECONDS)  # lets changes of several steps share a report
        while not self._residency.has_changes:
            if call.done():
                raise Unavailable("the KV manager is gone")
            self._changed.clear()
            await self._changed.wait()
        return self._residency.take_delta()

    def _encode(self, report: Report) -> kvmanager_pb2.KvReport:
        return kvmanager_pb2.KvReport(
            worker_id=self._worker_id,
            epoch=self._epoch,
            sequence=report.sequence,
            snapshot=report.snapshot,
            stored=report.stored,
            removed=report.removed,
            cleared=report.cleared,
            leases=[_encode_lease(change) for change in report.leases],
        )


async def follow(engine: Engine, reporters: Sequence[KvReporter]) -> None:
    """For ever. Each KV manager is told all: what devices hold is little beside what the managers keep."""
    while True:
        events = await engine.next_kv_events()
        for reporter in reporters:
            reporter.apply(events)


_Call = grpc.aio.StreamStreamCall[kvmanager_pb2.KvReport, kvmanager_pb2.KvReportAck]


def _encode_lease(change: LeaseChange) -> kvmanager_pb2.LeaseReport:
    return kvmanager_pb2.LeaseReport(
        lease_id=change.lease_id,
        state=_STATES[change.state],
        blocks=change.blocks,
        remaining_seconds=change.remaining_seconds,
    )


def _brief(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
