"""Reports to each KV manager what this worker holds: KVManager.Report, a snapshot and then changes.

One report is on its way at a time, and what changes meanwhile merges into the next one. A stream that broke
begins again with a snapshot, so nothing has to be kept for it.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import grpc.aio

from llmserve.core.clock import Clock
from llmserve.core.delta_feed import DeltaFeed
from llmserve.core.errors import Unavailable
from llmserve.core.ids import LeaseId
from llmserve.core.lease_table import LeaseTable
from llmserve.core.request import KvEvents, LeaseChange, LeaseState
from llmserve.engines.base import Engine
from llmserve.rpc.client import Backoff
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, kvmanager_pb2_grpc

_log = logging.getLogger(__name__)

_ACK_SECONDS = 10.0
_MIN_INTERVAL_SECONDS = 0.05

_STATES = {
    LeaseState.GRANTED: kvmanager_pb2.LEASE_STATE_GRANTED,
    LeaseState.RELEASED: kvmanager_pb2.LEASE_STATE_RELEASED,
    LeaseState.EXPIRED: kvmanager_pb2.LEASE_STATE_EXPIRED,
}


class DeviceHoldings:
    """The blocks on this worker's device and the leases on them, and what of that one KV manager does not
    know yet. Reports of an incarnation (worker_id, epoch) are numbered from 1. Pure."""

    def __init__(self, worker_id: str, epoch: int, clock: Clock) -> None:
        self._worker_id, self._epoch = worker_id, epoch
        self._blocks: dict[bytes, None] = {}
        self._leases: LeaseTable[LeaseId, LeaseChange] = LeaseTable(clock, remembered_ends=0)
        self._feed: DeltaFeed[bytes] = DeltaFeed()
        self._lease_changes: list[LeaseChange] = []
        self._snapshot_due = True

    @property
    def has_changes(self) -> bool:
        return self._feed.has_changes or bool(self._lease_changes)

    def apply(self, events: KvEvents) -> None:
        if events.cleared:
            self._blocks.clear()
            self._feed.reset(())
        for block_hash in events.removed:
            self._blocks.pop(block_hash, None)
        self._feed.remove(events.removed)
        self._blocks.update(dict.fromkeys(events.stored))
        self._feed.store(events.stored)
        for change in events.leases:
            self._apply_lease(change)

    def _apply_lease(self, change: LeaseChange) -> None:
        self._lease_changes.append(change)
        if change.state is LeaseState.GRANTED:
            self._leases.grant(change.lease_id, change, change.remaining_seconds)
        elif change.lease_id in self._leases:
            self._leases.release(change.lease_id)

    def resync(self) -> None:
        """Lets the next report be a snapshot: all blocks, and all open leases."""
        self._feed.reset(self._blocks)
        self._snapshot_due = True

    def take(self) -> kvmanager_pb2.KvReport:
        """Returns the next report: what changed since the last one, or a snapshot."""
        delta = self._feed.take()
        is_snapshot, self._snapshot_due = self._snapshot_due, False
        leases = self._open_leases() if is_snapshot else self._lease_changes
        report = kvmanager_pb2.KvReport(
            worker_id=self._worker_id,
            epoch=self._epoch,
            sequence=delta.sequence,
            snapshot=is_snapshot,
            stored=delta.stored,
            removed=delta.removed,
            cleared=delta.is_snapshot and not is_snapshot,
            leases=map(_encode_lease, leases),
        )
        self._lease_changes = []
        return report

    def _open_leases(self) -> Iterable[LeaseChange]:
        for lease_id, granted in self._leases.items():
            remaining = max(0.0, self._leases.remaining_seconds(lease_id))
            yield replace(granted, remaining_seconds=remaining)


def _encode_lease(change: LeaseChange) -> kvmanager_pb2.LeaseReport:
    return kvmanager_pb2.LeaseReport(
        lease_id=change.lease_id,
        state=_STATES[change.state],
        blocks=change.blocks,
        remaining_seconds=change.remaining_seconds,
    )


class KvReporter:
    """Reports to one KV manager. `apply` never waits; `run` is a task of the worker."""

    def __init__(self, holdings: DeviceHoldings, channel: grpc.aio.Channel) -> None:
        self._holdings = holdings
        self._stub = kvmanager_pb2_grpc.KVManagerStub(channel)  # type: ignore[no-untyped-call]  # generated
        self._changed = asyncio.Event()

    def apply(self, events: KvEvents) -> None:
        self._holdings.apply(events)
        self._changed.set()

    async def run(self) -> None:
        """Runs for ever; the manager may come and go."""
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
            self._holdings.resync()
            while True:
                if await self._send(call):
                    _log.info("the KV manager asks for a snapshot")
                    self._holdings.resync()
                backoff.reset()
                await self._until_changed(call)
        finally:
            call.cancel()

    async def _send(self, call: "_Call") -> bool:
        """Sends a report. Returns whether the manager asks for a snapshot."""
        async with asyncio.timeout(_ACK_SECONDS):
            try:
                await call.write(self._holdings.take())
                answer = await call.read()
            except asyncio.InvalidStateError as error:  # what gRPC raises for a call that has ended
                raise Unavailable("the stream to the KV manager broke") from error
        if not isinstance(answer, kvmanager_pb2.KvReportAck):
            raise Unavailable("the KV manager closed the stream")
        return bool(answer.resync)

    async def _until_changed(self, call: "_Call") -> None:
        """Waits until there is something to report, or the stream breaks: a manager that comes back needs a
        snapshot. This may be for ever; keepalive pings notice a peer that is gone. Errors: Unavailable."""
        await asyncio.sleep(_MIN_INTERVAL_SECONDS)  # lets changes of several steps share a report
        while not self._holdings.has_changes:
            if call.done():
                raise Unavailable("the KV manager is gone")
            self._changed.clear()
            await self._changed.wait()


_Call = grpc.aio.StreamStreamCall[kvmanager_pb2.KvReport, kvmanager_pb2.KvReportAck]


async def follow(engine: Engine, reporters: Sequence[KvReporter]) -> None:
    """Passes the engine's changes to every reporter, for ever: what devices hold is little beside the
    stores."""
    while True:
        events = await engine.next_kv_events()
        for reporter in reporters:
            reporter.apply(events)


def _brief(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
