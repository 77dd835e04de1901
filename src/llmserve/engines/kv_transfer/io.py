"""The one thread of hand-over in a process: an event loop that owns the transports.

Transports are single-threaded, serve peers (progress) and pull from peers (poll) at once; so both
the server and the client of a process share this thread. It sleeps in the kernel while no pull
runs and no peer has announced one.
"""

import asyncio
import logging
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from llmserve.core.errors import TransferError
from llmserve.core.tasks import TaskOwner
from llmserve.engines.kv_transfer.layout.blocks import KvLayout
from llmserve.engines.kv_transfer.policy import TransferPolicy
from llmserve.engines.kv_transfer.status import TransferCounters
from llmserve.transfer.base import Batch, PeerName, Transfer, TransferState, TransferStatus, Transport
from llmserve.transfer.pacing import TokenBucket
from llmserve.transfer.probe import ProbeMemory

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_CALL_SECONDS = 30.0
_TICK_SECONDS = 0.001
_RETRY_CANCEL_SECONDS = 0.05
# (while the youngest transfer is not so many seconds old, look again so many seconds later)
_NAPS = ((0.01, 0.00005), (0.1, 0.0002))


@dataclass(eq=False, slots=True)
class _Flight:
    transport: Transport
    transfer: Transfer
    done: asyncio.Future[TransferStatus]
    started: float


class HandoverIo:
    """Registers the layout's memory with every transport and owns these until `close`.

    `call` and `post` may be used from any thread; everything else belongs to the loop's."""

    def __init__(
        self, transports: Sequence[Transport], layout: KvLayout, policy: TransferPolicy | None = None
    ) -> None:
        """Errors: TransferError when the memory cannot be registered; the transports are closed."""
        self.layout = layout
        self.policy = policy or TransferPolicy()
        self.probe = ProbeMemory(len(layout.regions))
        self.regions = (*layout.regions, self.probe.region)
        limit = self.policy.bytes_per_second
        self.bucket = TokenBucket(limit) if limit else None
        self.counters = TransferCounters()
        self.ended = threading.Event()  # the result of a pull or of a push is there to be taken
        self._transports = {transport.name: transport for transport in transports}
        self.fences = dict.fromkeys(self._transports, 0)  # how often each was fenced
        self._flights: list[_Flight] = []
        self._expected: dict[tuple[int, str], float] = {}  # (connection, lease id) -> until when
        self._pump: asyncio.Task[None] | None = None
        self.closed = False
        try:
            for transport in transports:
                transport.register(self.regions)
            self.descriptions = {t.name: b64encode(t.describe()).decode() for t in transports}
        except TransferError:
            self._close_transports()
            raise
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kv-handover", daemon=True)
        self._thread.start()
        self._ready.wait(_CALL_SECONDS)

    @property
    def transports(self) -> Mapping[str, Transport]:
        return self._transports

    # -- from any thread

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine on the loop and waits for it, at most 30 s."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_SECONDS)

    def post(self, action: Callable[[], object]) -> None:
        """Runs an action on the loop, soon. Errors: TransferError after `close`."""
        try:
            self._loop.call_soon_threadsafe(action)
        except RuntimeError as error:
            raise TransferError("hand-over is closed") from error

    def close(self) -> None:
        """Ends every task, closes the transports, joins the thread. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_CALL_SECONDS)

    # -- on the loop

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._tasks.spawn(name, work)

    def expect(self, connection: int, lease_id: str, seconds: float) -> None:
        """A peer will connect or read: serve it until `dismiss` or `forget`, or for so long."""
        self._expected[connection, lease_id] = time.monotonic() + seconds
        self._start_pump()

    def dismiss(self, connection: int, lease_id: str) -> None:
        self._expected.pop((connection, lease_id), None)

    def forget(self, connection: int) -> None:
        for reader in [reader for reader in self._expected if reader[0] == connection]:
            del self._expected[reader]

    async def read(self, transport: Transport, peer: PeerName, batch: Batch) -> TransferStatus:
        """Copies a batch from a peer; DONE or FAILED. When it returns or has been cancelled, local
        memory is no longer touched."""
        return await self._fly(transport, lambda: transport.read(peer, batch))

    async def write(self, transport: Transport, peer: PeerName, batch: Batch) -> TransferStatus:
        """Copies a batch to a peer; DONE: it has all arrived. Otherwise some of it may still arrive."""
        return await self._fly(transport, lambda: transport.write(peer, batch))

    def fence(self, names: Iterable[str]) -> None:
        """Over these transports nobody reaches this memory any more who was connected before: it is
        registered anew. This side's transfers over them fail. One that cannot do that is closed for good."""
        for name in names:
            self.fences[name] += 1
            if transport := self._transports.get(name):
                self._register_anew(transport)

    def _register_anew(self, transport: Transport) -> None:
        try:
            transport.register(self.regions)
            self.descriptions[transport.name] = b64encode(transport.describe()).decode()
        except TransferError as error:
            _log.error("transport %s is given up: %s", transport.name, error.message)
            del self._transports[transport.name], self.descriptions[transport.name]
            _guarded(transport.close)

    async def _fly(self, transport: Transport, start: Callable[[], Transfer]) -> TransferStatus:
        now = time.monotonic()
        try:
            transfer = start()
        except TransferError as error:
            return TransferStatus(TransferState.FAILED, error.message)
        flight = _Flight(transport, transfer, self._loop.create_future(), now)
        status = _poll(flight)  # a one-sided read may have completed already
        if status.state is not TransferState.RUNNING:
            return status
        self._flights.append(flight)
        self._start_pump()
        try:
            return await flight.done
        except asyncio.CancelledError:
            await self._let_go(flight)
            raise

    async def _let_go(self, flight: _Flight) -> None:
        if flight in self._flights:
            self._flights.remove(flight)
            while not _cancelled(flight):  # noqa: ASYNC110 (the network signals nothing)
                await asyncio.sleep(_RETRY_CANCEL_SECONDS)

    # -- the pump: runs only while there is something to serve or to poll

    def _start_pump(self) -> None:
        if self._pump is None or self._pump.done():
            self._pump = self._tasks.spawn("pump", self._run_pump())

    async def _run_pump(self) -> None:
        while self._flights or self._serves():
            if self._expected:
                self._progress()
            self._poll_flights()
            await asyncio.sleep(0 if self._napped() else _TICK_SECONDS)

    def _serves(self) -> bool:
        now = time.monotonic()
        for reader in [reader for reader, until in self._expected.items() if until < now]:
            del self._expected[reader]
        return bool(self._expected) and any(t.needs_progress for t in self.transports.values())

    def _progress(self) -> None:
        for transport in self.transports.values():
            if transport.needs_progress:
                _guarded(transport.progress)

    def _poll_flights(self) -> None:
        for flight in list(self._flights):
            status = _poll(flight)
            if status.state is not TransferState.RUNNING:
                self._flights.remove(flight)
                if not flight.done.done():
                    flight.done.set_result(status)

    def _napped(self) -> bool:
        """Sleeps for less than any timer of the loop can; the loop itself runs between two naps. Not when
        nothing is so young that a millisecond matters: a transfer that hangs must slow down nothing else."""
        if not self._flights:
            return False
        age = time.monotonic() - max(flight.started for flight in self._flights)
        nap = next((nap for young, nap in _NAPS if age < young), None)
        if nap is not None:
            time.sleep(nap)
        return nap is not None

    # -- life of the thread

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._tasks = TaskOwner("handover")
        self._ready.set()
        await self._stop.wait()
        await self._tasks.aclose()
        self._close_transports()

    def _close_transports(self) -> None:
        for transport in self.transports.values():
            _guarded(transport.close)


def _guarded(action: Callable[[], None]) -> None:
    try:
        action()
    except TransferError as error:
        _log.warning("transport: %s", error)


def _cancelled(flight: _Flight) -> bool:
    try:
        flight.transport.cancel(flight.transfer)
    except TransferError as error:
        _log.warning("a transfer over %s does not end yet: %s", flight.transport.name, error.message)
        return False
    return True


def _poll(flight: _Flight) -> TransferStatus:
    try:
        return flight.transport.poll(flight.transfer)
    except TransferError as error:
        return TransferStatus(TransferState.FAILED, error.message)
