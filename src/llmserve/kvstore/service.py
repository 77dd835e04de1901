"""llmserve.v1.KVManager: reports of workers, look-ups, status, and the calls of the store."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import BlockHash, LeaseId
from llmserve.core.request import LeaseChange, LeaseState
from llmserve.kvstore.directory.directory import BlockReport, Holder
from llmserve.kvstore.directory.manager import KVManager, ReportStream
from llmserve.kvstore.directory.watcher import DirectoryUpdate
from llmserve.kvstore.store_admin_calls import StoreAdminCalls, encode_tier
from llmserve.kvstore.store_calls import StoreCalls
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, kvmanager_pb2_grpc
from llmserve.rpc.permissions import check_name

_log = logging.getLogger(__name__)

_WATCH_INTERVAL_SECONDS = 0.05

_Context = grpc.aio.ServicerContext[Any, Any]
_STATES: dict[int, LeaseState] = {
    kvmanager_pb2.LEASE_STATE_GRANTED: LeaseState.GRANTED,
    kvmanager_pb2.LEASE_STATE_RELEASED: LeaseState.RELEASED,
    kvmanager_pb2.LEASE_STATE_EXPIRED: LeaseState.EXPIRED,
}


class KVManagerService(kvmanager_pb2_grpc.KVManagerServicer):
    """One loop; every message is one synchronous call into the manager. `close` ends the streams."""

    def __init__(self, manager: KVManager, store: StoreCalls, admin: StoreAdminCalls) -> None:
        self._manager, self._store, self._admin = manager, store, admin
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Ends the streams. Workers keep their changes and begin again with the next manager."""
        self._closing.set()

    async def Report(  # noqa: N802 - the name in the proto
        self, request_iterator: AsyncIterator[kvmanager_pb2.KvReport], context: _Context
    ) -> AsyncIterator[kvmanager_pb2.KvReportAck]:
        connection, worker_id = ReportStream(), ""
        # The handler may be left at a yield when the peer is gone; gRPC calls this in any case.
        context.add_done_callback(lambda _: self._manager.disconnect(connection))  # type: ignore[arg-type]
        try:
            async for report in self._until_closing(request_iterator):
                if not worker_id:
                    check_name(context, report.worker_id)
                    worker_id = report.worker_id
                    _log.info("worker %s reports, epoch %d", worker_id, report.epoch)
                yield self._report(connection, worker_id, report)
        finally:
            self._manager.disconnect(connection)
            _log.info("worker %s reports no longer", worker_id or "(unnamed)")

    async def Lookup(  # noqa: N802
        self, request: kvmanager_pb2.LookupRequest, context: _Context
    ) -> kvmanager_pb2.LookupResponse:
        prefix = self._manager.prefix_blocks(list(map(BlockHash, request.block_hashes)))
        return kvmanager_pb2.LookupResponse(
            prefix_blocks={str(name): blocks for name, blocks in prefix.items()}
        )

    async def GetKvStatus(  # noqa: N802
        self, request: kvmanager_pb2.GetKvStatusRequest, context: _Context
    ) -> kvmanager_pb2.GetKvStatusResponse:
        workers = [
            kvmanager_pb2.WorkerKvStatus(
                worker_id=worker.worker_id,
                epoch=worker.epoch,
                device_blocks=worker.device_blocks,
                open_leases=worker.open_leases,
                connected=worker.connected,
            )
            for worker in self._manager.workers()
        ]
        store = self._admin.stats()
        return kvmanager_pb2.GetKvStatusResponse(
            directory_blocks=self._manager.directory_blocks,
            workers=workers,
            open_leases=self._manager.open_leases,
            leased_blocks=self._manager.leased_blocks,
            orphan_blocks=self._manager.orphan_blocks,
            tiers=map(encode_tier, store.tiers),
            saved_prefill_seconds=store.saved_prefill_seconds,
        )

    async def AttachStore(  # noqa: N802
        self, request: kvmanager_pb2.AttachStoreRequest, context: _Context
    ) -> kvmanager_pb2.AttachStoreResponse:
        check_name(context, request.worker_id)
        return await self._store.attach(request)

    async def PreparePrompt(  # noqa: N802
        self, request: kvmanager_pb2.PreparePromptRequest, context: _Context
    ) -> kvmanager_pb2.PreparePromptResponse:
        check_name(context, request.worker_id)
        return await self._store.prepare(request)

    async def SettleStore(  # noqa: N802
        self, request: kvmanager_pb2.SettleStoreRequest, context: _Context
    ) -> kvmanager_pb2.SettleStoreResponse:
        check_name(context, request.worker_id)
        return self._store.settle(request)

    async def ListBlocks(  # noqa: N802
        self, request: kvmanager_pb2.ListBlocksRequest, context: _Context
    ) -> kvmanager_pb2.ListBlocksResponse:
        return await self._admin.list_blocks(request)

    async def PinBlocks(  # noqa: N802
        self, request: kvmanager_pb2.PinBlocksRequest, context: _Context
    ) -> kvmanager_pb2.PinBlocksResponse:
        return await self._admin.pin(request)

    async def EvictBlocks(  # noqa: N802
        self, request: kvmanager_pb2.EvictBlocksRequest, context: _Context
    ) -> kvmanager_pb2.EvictBlocksResponse:
        return await self._admin.evict(request)

    async def DropAdapter(  # noqa: N802
        self, request: kvmanager_pb2.DropAdapterRequest, context: _Context
    ) -> kvmanager_pb2.DropAdapterResponse:
        return await self._admin.drop_adapter(request)

    def VerifyBlocks(  # noqa: N802
        self, request: kvmanager_pb2.VerifyBlocksRequest, context: _Context
    ) -> AsyncIterator[kvmanager_pb2.VerifyBlocksResponse]:
        return self._admin.verify(request)

    def ExportBlocks(  # noqa: N802
        self, request: kvmanager_pb2.ExportBlocksRequest, context: _Context
    ) -> AsyncIterator[kvmanager_pb2.BlockPiece]:
        return self._admin.export(request)

    def ImportBlocks(  # noqa: N802
        self, request_iterator: AsyncIterator[kvmanager_pb2.ImportPiece], context: _Context
    ) -> AsyncIterator[kvmanager_pb2.ImportProgress]:
        return self._admin.import_blocks(request_iterator)

    async def Watch(  # noqa: N802
        self, request: kvmanager_pb2.WatchRequest, context: _Context
    ) -> AsyncIterator[kvmanager_pb2.WatchReports]:
        changed = asyncio.Event()
        await context.send_initial_metadata(())  # the watcher knows that it is connected before any report
        watcher = self._manager.watch(changed.set)
        # The handler may be left at a yield when the peer is gone; gRPC calls this in any case.
        context.add_done_callback(lambda _: self._manager.unwatch(watcher))  # type: ignore[arg-type]
        try:
            while not self._closing.is_set():
                while updates := watcher.take():
                    yield kvmanager_pb2.WatchReports(reports=map(_encode_update, updates))
                await self._sooner(changed)
        finally:
            self._manager.unwatch(watcher)

    async def Prefetch(  # noqa: N802
        self, request: kvmanager_pb2.PrefetchRequest, context: _Context
    ) -> kvmanager_pb2.PrefetchResponse:
        return self._store.prefetch(request)

    async def _sooner(self, changed: asyncio.Event) -> None:
        """Waits for a change or for the end, and a little longer, so that several changes share a message."""
        waits = [asyncio.ensure_future(event.wait()) for event in (changed, self._closing)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        changed.clear()
        if not self._closing.is_set():
            await asyncio.sleep(_WATCH_INTERVAL_SECONDS)

    async def _until_closing(
        self, requests: AsyncIterator[kvmanager_pb2.KvReport]
    ) -> AsyncIterator[kvmanager_pb2.KvReport]:
        closing = asyncio.create_task(self._closing.wait(), name="kvmanager.closing")
        try:
            while True:
                read = asyncio.ensure_future(anext(requests, None))
                await asyncio.wait((read, closing), return_when=asyncio.FIRST_COMPLETED)
                if not read.done() or (report := read.result()) is None:
                    break
                yield report
        finally:
            closing.cancel()
            read.cancel()

    def _report(
        self, connection: ReportStream, worker_id: str, report: kvmanager_pb2.KvReport
    ) -> kvmanager_pb2.KvReportAck:
        if not report.worker_id or report.worker_id != worker_id:
            raise InvalidRequest("every report of a stream names the same worker")
        leases = list(map(_decode_lease, report.leases))
        ack = self._manager.report(connection, _decode_blocks(report), leases)
        if ack.resync:
            _log.warning("worker %s: report %d does not follow the last one", worker_id, report.sequence)
        return kvmanager_pb2.KvReportAck(sequence=ack.sequence, resync=ack.resync)


def _decode_blocks(report: kvmanager_pb2.KvReport) -> BlockReport:
    return BlockReport(
        holder=Holder(report.worker_id),
        epoch=report.epoch,
        sequence=report.sequence,
        snapshot=report.snapshot,
        cleared=report.cleared,
        removed=list(map(BlockHash, report.removed)),
        stored=list(map(BlockHash, report.stored)),
    )


def _encode_update(update: DirectoryUpdate) -> kvmanager_pb2.WatchReport:
    return kvmanager_pb2.WatchReport(
        node=update.holder.node,
        tier=update.holder.tier.value,
        sequence=update.sequence,
        anew=update.is_snapshot,
        dropped=update.dropped,
        removed=update.removed,
        stored=update.stored,
    )


def _decode_lease(lease: kvmanager_pb2.LeaseReport) -> LeaseChange:
    if not lease.lease_id or lease.state not in _STATES:
        raise InvalidRequest("a lease report needs a lease_id and a state")
    return LeaseChange(LeaseId(lease.lease_id), _STATES[lease.state], lease.blocks, lease.remaining_seconds)
