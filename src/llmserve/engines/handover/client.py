"""The pulling end: fetches the blocks of a ticket into this process's KV memory.

A pull is: begin (the lease is checked and renewed) -> read over the first transport that works ->
release. Only a release that finds the lease still valid makes the data count.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace

from llmserve.core.errors import TransferError
from llmserve.core.ids import LeaseId, RequestId
from llmserve.engines.handover.io import HandoverIo
from llmserve.engines.handover.peers import Peer, PeerDirectory
from llmserve.engines.handover.ticket import HandoverTicket
from llmserve.kvstore.leases import LeaseAnswer
from llmserve.transfer.base import Batch, TransferState, TransferStatus

_log = logging.getLogger(__name__)
_RENEWALS_PER_LEASE = 3
_SETTLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class PullLimits:
    """attempt_seconds: one transport's chance. total_seconds: the whole pull, all fallbacks included.
    connects: how often a connection that breaks during a pull is made again."""

    attempt_seconds: float = 10.0
    total_seconds: float = 30.0
    connects: int = 2


@dataclass(frozen=True, slots=True)
class PullJob:
    """Copy remote_block_ids[i] of the ticket's rank into local_block_ids[i], all layers."""

    request_id: RequestId
    ticket: HandoverTicket
    rank: int
    local_block_ids: tuple[int, ...]
    remote_block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PullResult:
    """ok: the data is there and true. reason: why not. fallbacks: what failed before, as
    "transport: reason". seconds: from the call of `pull`."""

    request_id: RequestId
    ok: bool
    transport: str = ""
    bytes: int = 0
    seconds: float = 0.0
    reason: str = ""
    fallbacks: tuple[str, ...] = ()


@dataclass(slots=True)
class _Progress:
    """What one pull has come to."""

    job: PullJob
    started: float
    transport: str = ""
    bytes: int = 0
    fallbacks: list[str] = field(default_factory=list)


class HandoverClient:
    """Methods without underscore may be called from any thread and never wait for the network."""

    def __init__(self, io: HandoverIo, rank: int = 0, limits: PullLimits | None = None) -> None:
        """rank: whose endpoint of a ticket watch and release speak to."""
        self._io = io
        self._rank = rank
        self._limits = limits or PullLimits()
        self._peers = PeerDirectory(io)
        self._lock = threading.Lock()
        self._active: set[RequestId] = set()
        self._finished: deque[PullResult] = deque()
        self._pulls: dict[RequestId, asyncio.Task[None]] = {}
        self._watches: dict[tuple[LeaseId, int], asyncio.Task[None]] = {}
        self._closed = False

    # -- the engine

    def pull(self, job: PullJob) -> None:
        """Starts a pull; its result comes from take_finished, exactly once. Errors: TransferError
        when the request is being pulled already, or after `close`."""
        with self._lock:
            if job.request_id in self._active:
                raise TransferError(f"request {job.request_id} is being pulled already")
            self._active.add(job.request_id)
        progress = _Progress(job, time.monotonic())
        try:
            self._io.post(lambda: self._start(progress))
        except TransferError:
            with self._lock:
                self._active.discard(job.request_id)
            raise

    def cancel(self, request_id: RequestId) -> None:
        """Its result still comes, once local memory is no longer touched. Unknown ids are ignored."""
        self._post(lambda: self._cancel(request_id))

    def take_finished(self) -> list[PullResult]:
        """Each result once. The engine polls this."""
        taken = []
        with suppress(IndexError):
            while True:
                taken.append(self._finished.popleft())
        return taken

    @property
    def active_count(self) -> int:
        """Pulls whose result has not been produced."""
        return len(self._active)

    def watch(self, ticket: HandoverTicket) -> None:
        """Renews the lease, at once and thrice per lease, until unwatch, pull or the lease's end;
        also connects, so that a later pull need not."""
        self._post(lambda: self._watch(ticket, self._rank))

    def unwatch(self, ticket: HandoverTicket) -> None:
        self._post(lambda: self._unwatch(ticket, self._rank))

    def release(self, ticket: HandoverTicket) -> None:
        """Gives back blocks that nobody will fetch. Best effort; ends a watch."""
        self._post(lambda: self._release(ticket, self._rank))

    def close(self) -> None:
        """Cancels every pull, forgets watches, hangs up. Idempotent; before the io's `close`."""
        if not self._closed and not self._io.closed:
            self._closed = True
            self._io.call(self._aclose())

    # -- on the loop

    def _post(self, action: Callable[[], object]) -> None:
        with suppress(TransferError):  # closed: there is nothing left to act on
            self._io.post(action)

    def _start(self, progress: _Progress) -> None:
        job = progress.job
        self._unwatch(job.ticket, job.rank)
        self._pulls[job.request_id] = self._io.spawn(f"pull {job.request_id}", self._pull(progress))

    def _cancel(self, request_id: RequestId) -> None:
        if pull := self._pulls.get(request_id):
            pull.cancel()

    def _watch(self, ticket: HandoverTicket, rank: int) -> None:
        self._unwatch(ticket, rank)
        self._watches[ticket.lease_id, rank] = self._io.spawn("watch", self._keep_alive(ticket, rank))

    def _unwatch(self, ticket: HandoverTicket, rank: int) -> None:
        if watch := self._watches.pop((ticket.lease_id, rank), None):
            watch.cancel()

    def _release(self, ticket: HandoverTicket, rank: int) -> None:
        self._unwatch(ticket, rank)
        self._io.spawn("release", self._give_back(ticket, rank))

    async def _aclose(self) -> None:
        tasks = [*self._pulls.values(), *self._watches.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_SETTLE_SECONDS)
        self._peers.close()

    # -- one pull

    async def _pull(self, progress: _Progress) -> None:
        reason = "the pull ended without a result"
        try:
            async with asyncio.timeout(self._limits.total_seconds):
                await self._fetch(progress)
            reason = ""
        except TimeoutError:
            reason = f"not done within {self._limits.total_seconds:g} s"
        except asyncio.CancelledError:
            reason = "cancelled"
        except TransferError as error:
            reason = error.message
        except Exception as error:
            _log.exception("pull of %s failed", progress.job.request_id)
            reason = repr(error)
        finally:
            self._finish(progress, reason)

    def _finish(self, progress: _Progress, reason: str) -> None:
        job = progress.job
        self._pulls.pop(job.request_id, None)
        result = PullResult(
            request_id=job.request_id,
            ok=not reason,
            transport=progress.transport,
            bytes=0 if reason else progress.bytes,
            seconds=time.monotonic() - progress.started,
            reason=reason,
            fallbacks=tuple(progress.fallbacks),
        )
        if reason:
            self._io.counters.failed_pulls += 1
            if not self._closed:
                self._io.spawn("give back", self._give_back(job.ticket, job.rank))
        with self._lock:
            self._active.discard(job.request_id)
        self._finished.append(result)
        _log.info("kv pull %s: %s", "failed" if reason else "complete", replace(result, fallbacks=()))

    async def _fetch(self, progress: _Progress) -> None:
        """Errors: TransferError with every reason."""
        job = progress.job
        batch = self._io.layout.batch(job.local_block_ids, job.remote_block_ids)
        for attempt in range(self._limits.connects):
            peer = await self._peers.get(job.ticket, job.rank)
            try:
                await self._read_validated(peer, progress, batch)
                return
            except TransferError as error:
                if not peer.lost.done() or attempt == self._limits.connects - 1:
                    raise
                progress.fallbacks.append(f"side channel: {error.message}")

    async def _read_validated(self, peer: Peer, progress: _Progress, batch: Batch) -> None:
        ticket = progress.job.ticket
        await peer.demand("begin", ticket)
        keeper = self._io.spawn("keep", self._renewals(peer, ticket))
        try:
            await self._read_over_any(peer, progress, batch)
        finally:
            keeper.cancel()
        await peer.demand("release", ticket)

    async def _read_over_any(self, peer: Peer, progress: _Progress, batch: Batch) -> None:
        failures = []
        for name in peer.transports:
            try:
                await self._read_over(name, peer, progress, batch)
                return
            except TransferError as error:
                failures.append(f"{name}: {error.message}")
                progress.fallbacks.append(failures[-1])
                self._io.counters.of(name).failures += 1
                peer.distrust(name)
                _log.warning("kv pull of %s failed over %s", progress.job.request_id, failures[-1])
            if peer.lost.done():
                break
        raise TransferError("; ".join(failures) or f"no transport in common with {peer.endpoint}")

    async def _read_over(self, name: str, peer: Peer, progress: _Progress, batch: Batch) -> None:
        started = time.monotonic()
        transport, remote = peer.transport(name)
        await self._while_alive(peer, self._io.read(transport, remote, batch))
        counters = self._io.counters.of(name)
        progress.transport, progress.bytes = name, batch.local.total_bytes
        counters.pulls += 1
        counters.bytes += progress.bytes
        counters.seconds += time.monotonic() - started
        self._io.counters.last_transport = name

    async def _while_alive(self, peer: Peer, read: Coroutine[object, object, TransferStatus]) -> None:
        """Ends the read when the owner of the blocks is gone or takes too long; returns only when
        local memory is no longer touched. Errors: TransferError."""
        task = self._io.spawn("read", read)
        limit = self._limits.attempt_seconds
        try:
            await asyncio.wait((task, peer.lost), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _settled(task)
        if task.cancelled():
            raise TransferError(peer.lost.result() if peer.lost.done() else f"not done within {limit:g} s")
        status = task.result()
        if status.state is not TransferState.DONE:
            raise TransferError(status.reason or "failed without a reason")

    # -- leases

    async def _keep_alive(self, ticket: HandoverTicket, rank: int) -> None:
        try:
            peer = await self._peers.get(ticket, rank)
            await peer.demand("renew", ticket)
            await self._renewals(peer, ticket)
        except TransferError as error:
            _log.info("lease %s is no longer renewed: %s", ticket.lease_id, error.message)
        finally:
            if self._watches.get((ticket.lease_id, rank)) is asyncio.current_task():
                del self._watches[ticket.lease_id, rank]

    async def _renewals(self, peer: Peer, ticket: HandoverTicket) -> None:
        with suppress(TransferError):  # the validation after the read finds out
            while True:
                await asyncio.sleep(ticket.lease_seconds / _RENEWALS_PER_LEASE)
                await peer.demand("renew", ticket)

    async def _give_back(self, ticket: HandoverTicket, rank: int) -> None:
        try:
            peer = await self._peers.get(ticket, rank)
            answer = await peer.lease("release", ticket)
            if answer is not LeaseAnswer.VALID:
                _log.debug("lease %s was given back late: %s", ticket.lease_id, answer)
        except TransferError as error:
            _log.info("lease %s was not given back: %s", ticket.lease_id, error.message)


async def _settled(task: asyncio.Task[TransferStatus]) -> None:
    """Cancels a read and waits for it, through any cancellation of the waiter itself, which is
    passed on afterwards: a result must not be seen while memory may change."""
    task.cancel()
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
