"""Follows the KV managers (KVManager.Watch) into the prefix index. Asks them to prefetch, and to drop what an
adapter that is gone has left.

When a stream breaks, its replica is dropped; the next stream begins with a full snapshot. Without KV
managers nothing runs.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import cast

import grpc.aio

from llmserve.core.errors import Unavailable
from llmserve.core.ids import AdapterDigest, BlockHash
from llmserve.core.tasks import TaskOwner
from llmserve.kvstore.blocks import adapter_label, store_key
from llmserve.kvstore.directory.directory import Holder, KvTier
from llmserve.kvstore.directory.watcher import DirectoryUpdate
from llmserve.router.events import Prefetch
from llmserve.router.prefix.index import PrefixIndex
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.client import Backoff, open_channel
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, kvmanager_pb2_grpc
from llmserve.rpc.status import from_grpc

_log = logging.getLogger(__name__)
_PREFETCH_SECONDS = 2.0
_DROP_SECONDS = 60.0
_DROP_AGAIN_SECONDS = (0.5, 30.0)


class KvWatch:
    """Life: start (once) -> aclose (idempotent). Made inside a running loop."""

    def __init__(
        self, addresses: Sequence[str], index: PrefixIndex, credentials: Credentials = NO_CREDENTIALS
    ) -> None:
        """addresses: one of each KV manager, which is also its name in the index."""
        self.addresses = tuple(addresses)
        self._index, self._credentials = index, credentials
        self._owner = TaskOwner("kv-watch")
        self._channels = AsyncExitStack()
        self._stubs: dict[str, kvmanager_pb2_grpc.KVManagerStub] = {}
        self._drops: dict[AdapterDigest, asyncio.Task[None]] = {}

    async def start(self) -> None:
        for address in self.addresses:
            channel = await self._channels.enter_async_context(
                open_channel(address, self._credentials, CallerRole.KVMANAGER)
            )
            self._stubs[address] = kvmanager_pb2_grpc.KVManagerStub(channel)  # type: ignore[no-untyped-call]
            self._owner.spawn(address, self._follow(address), fatal=True)

    async def wait(self) -> None:
        """Raises the defect that ended it; KV managers that come and go do not."""
        raise await self._owner.failed

    async def aclose(self) -> None:
        await self._owner.aclose()
        await self._channels.aclose()

    def away(self) -> list[str]:
        """KV managers that are not followed now."""
        return [address for address in self.addresses if address not in self._index.followed]

    def prefetch(self, wanted: Prefetch) -> None:
        """Asks in the background. Errors are logged, because the request runs all the same."""
        label = adapter_label(wanted.adapter)
        keys = [store_key(block_hash, label) for block_hash in wanted.block_hashes]
        for stretch in wanted.stretches:
            request = kvmanager_pb2.PrefetchRequest(
                worker_id=wanted.worker_id,
                tenant=wanted.tenant,
                block_hashes=keys[stretch.start : stretch.stop],
                wait_seconds=wanted.wait_seconds,
            )
            self._owner.spawn("prefetch", self._ask(stretch.manager, request))

    def drop_adapter(self, digest: AdapterDigest, dropped: Callable[[], object]) -> None:
        """Asks every KV manager, again and again, until none has anything left that was computed with this
        version of an adapter. dropped: called then. Call it after `start`."""
        self.keep_adapter(digest)
        self._drops[digest] = self._owner.spawn("drop-adapter", self._drop_everywhere(digest, dropped))

    def keep_adapter(self, digest: AdapterDigest) -> None:
        """Ends the asking: the version is in use again. Idempotent."""
        if drop := self._drops.pop(digest, None):
            drop.cancel()

    # -- parts

    async def _drop_everywhere(self, digest: AdapterDigest, dropped: Callable[[], object]) -> None:
        await asyncio.gather(*(self._drop(address, digest) for address in self.addresses))
        del self._drops[digest]
        dropped()

    async def _drop(self, address: str, digest: AdapterDigest) -> None:
        backoff = Backoff(*_DROP_AGAIN_SECONDS)
        while reason := await self._left(address, digest):
            _log.info("KV manager at %s is asked again to drop adapter %.12s: %s", address, digest, reason)
            await backoff.pause()

    async def _left(self, address: str, digest: AdapterDigest) -> str:
        """Why the KV manager is to be asked again; empty: it has nothing left."""
        request = kvmanager_pb2.DropAdapterRequest(digest=digest)
        try:
            answer = await self._stubs[address].DropAdapter(request, timeout=_DROP_SECONDS)
        except grpc.aio.AioRpcError as error:
            return from_grpc(error).message or "it does not answer"
        return f"{answer.left_blocks} blocks are read or written" if answer.left_blocks else ""

    async def _follow(self, address: str) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._watch(address, backoff)
                reason = "it closed the stream"
            except grpc.aio.AioRpcError as error:
                reason = from_grpc(error).message
            except Unavailable as error:
                reason = error.message
            finally:
                self._index.drop(address)
            _log.warning("KV manager at %s is not followed, trying again: %s", address, reason)
            await backoff.pause()

    async def _watch(self, address: str, backoff: Backoff) -> None:
        call = self._stubs[address].Watch(kvmanager_pb2.WatchRequest())
        try:
            await call.wait_for_connection()
            backoff.reset()
            self._index.begin(address)
            _log.info("KV manager at %s is followed", address)
            async for message in call:
                self._apply(address, message.reports)
        finally:
            call.cancel()

    def _apply(self, address: str, reports: Sequence[kvmanager_pb2.WatchReport]) -> None:
        """Errors: Unavailable, when a report is missing."""
        for report in reports:
            if not self._index.apply(address, _decode(report)):
                raise Unavailable(f"report {report.sequence} of {report.node} does not follow the last one")

    async def _ask(self, address: str, request: kvmanager_pb2.PrefetchRequest) -> None:
        try:
            await self._stubs[address].Prefetch(request, timeout=_PREFETCH_SECONDS)
        except grpc.aio.AioRpcError as error:
            _log.info("KV manager at %s was not asked to prefetch: %s", address, from_grpc(error).message)


def _decode(report: kvmanager_pb2.WatchReport) -> DirectoryUpdate:
    return DirectoryUpdate(
        holder=Holder(report.node, KvTier(report.tier)),
        sequence=report.sequence,
        is_snapshot=report.anew,
        dropped=report.dropped,
        removed=cast("tuple[BlockHash, ...]", tuple(report.removed)),
        stored=cast("tuple[BlockHash, ...]", tuple(report.stored)),
    )
