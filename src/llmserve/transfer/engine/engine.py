"""The one thread that owns the transports of a process and the memory that is registered with them.

A transport belongs to one thread, serves peers (`progress`) and moves bytes (`poll`). The thread runs an
event loop, which sleeps in the kernel while nothing is moved and no peer has announced that it reads or
writes, but for a look once a second where a transport needs it.

Contract: `call`, `post` and `close` may be used from any thread, everything else on the loop only. When
`read` or `write` returns, or its cancellation ends, local memory is no longer touched by it. Each wait ends:
a transfer that its transport cannot cancel within seconds ends with the transport, which is closed for good.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from llmserve.core.clock import Clock, SystemClock
from llmserve.core.errors import TransferError
from llmserve.core.tasks import TaskOwner
from llmserve.transfer.base import (
    Batch,
    PeerName,
    Region,
    Spans,
    TransferStatus,
    Transport,
)
from llmserve.transfer.devices import Staging
from llmserve.transfer.digest import digest
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.engine.counters import PairMatrix, TransferCounters
from llmserve.transfer.engine.flights import Flights
from llmserve.transfer.engine.lane import TokenBucket
from llmserve.transfer.engine.probe import ProbeMemory

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
CALL_SECONDS = 30.0
_TICK_SECONDS = 0.001
_REST_SECONDS = 1.0
_REST_STEPS = 256  # NIXL closes 16 connections in each


class SharedTransfers:
    """What the transfer engines of one process share. bytes_per_second: the rate of all transfers together;
    None: no limit. staging: reaches the memory of its device; None: host memory only. matrix: shows their
    pairs. bucket: limits their transfers; None: no limit. with_store: a KV store is one of them."""

    def __init__(self, bytes_per_second: float | None = None, staging: Staging | None = None) -> None:
        self.matrix = PairMatrix()
        self.staging = staging
        self.bucket = TokenBucket(bytes_per_second) if bytes_per_second else None
        self.with_store = False


class TransferEngine:
    """Owns the transports from the constructor to `close`, also when the constructor fails."""

    def __init__(
        self,
        transports: Sequence[Transport],
        regions: Sequence[Region],
        policy: TransferPolicy | None = None,
        clock: Clock | None = None,
        shared: SharedTransfers | None = None,
    ) -> None:
        """regions: memory that outlives the engine; a region of probes is registered after them. clock: time
        of the breakers. shared: given where a process has several engines. A transport that cannot register
        the memory is given up. Errors: TransferError when none can."""
        self.policy = policy or TransferPolicy()
        self.clock = clock or SystemClock()
        self.probing = asyncio.Lock()  # one probe at a time: they share memory, and would slow each other
        shared = shared or SharedTransfers(self.policy.bytes_per_second)
        self.matrix, self.bucket, self._staging = shared.matrix, shared.bucket, shared.staging
        self.counters = TransferCounters()
        self.closed = False
        self._transports = {transport.name: transport for transport in transports}
        self.descriptions: dict[str, bytes] = {}
        self.unusable: dict[str, str] = {}  # transports that were given up, and why
        self.fences = dict.fromkeys(self._transports, 0)  # how often each transport was fenced
        self._expected: dict[tuple[int, str], float] = {}  # (connection, lease id) -> monotonic end
        self._pump: asyncio.Task[None] | None = None
        try:
            self.probe = ProbeMemory(len(regions), self._staging)
            self.regions = (*regions, self.probe.region)
            for transport in transports:
                self._register(transport)
            if transports and not self._transports:
                raise TransferError("; ".join(f"{name}: {why}" for name, why in self.unusable.items()))
            self._flights = Flights(self._transports.values(), self._start_pump, self._give_up)
        except TransferError:
            self._close_transports()
            raise
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kv-transfer", daemon=True)
        self._thread.start()
        self._ready.wait(CALL_SECONDS)

    @property
    def transports(self) -> Mapping[str, Transport]:
        return self._transports

    def digest(self, spans: Spans) -> str:
        """Returns the digest of pieces of the registered memory. Errors: TransferError."""
        return digest(self.regions, spans, self._staging)

    # -- from any thread

    def call(self, work: Coroutine[Any, Any, _T], timeout: float = CALL_SECONDS) -> _T:
        """Runs a coroutine on the loop and waits for it. Errors: TransferError after `close`;
        TimeoutError."""
        if self.closed:
            work.close()
            raise TransferError("the transfer engine is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def post(self, action: Callable[[], object]) -> None:
        """Runs an action on the loop, soon. Errors: TransferError after `close`."""
        try:
            self._loop.call_soon_threadsafe(action)
        except RuntimeError as error:
            raise TransferError("the transfer engine is closed") from error

    def close(self) -> None:
        """Ends every task, closes the transports, joins the thread. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(CALL_SECONDS)

    # -- serving peers

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._tasks.spawn(name, work)

    def expect(self, connection: int, lease_id: str, seconds: float) -> None:
        """Serves a peer that will connect, read or write, until `dismiss`, `forget`, or the time is over."""
        self._expected[connection, lease_id] = time.monotonic() + seconds
        self._start_pump()

    def dismiss(self, connection: int, lease_id: str) -> None:
        self._expected.pop((connection, lease_id), None)

    def forget(self, connection: int) -> None:
        """Dismisses all that this connection has announced."""
        for reader in [reader for reader in self._expected if reader[0] == connection]:
            del self._expected[reader]

    def fence(self, names: Iterable[str]) -> None:
        """Keeps everybody out of this memory who has connected over these transports: the memory is
        registered again. Transfers of this side over them fail. A transport that cannot register again is
        closed for good."""
        for name in names:
            self.fences[name] += 1
            if transport := self._transports.get(name):
                self._register(transport)

    def _register(self, transport: Transport) -> None:
        try:
            transport.register(self.regions)
            self.descriptions[transport.name] = transport.describe()
        except TransferError as error:
            self._give_up(transport, error.message)

    def _give_up(self, transport: Transport, reason: str) -> None:
        _log.error("transport %s is given up: %s", transport.name, reason)
        self.unusable[transport.name] = reason
        self._transports.pop(transport.name, None)
        self.descriptions.pop(transport.name, None)
        _guarded(transport.close)

    # -- submit, poll, cancel

    async def read(self, transport: Transport, peer: PeerName, batch: Batch) -> TransferStatus:
        """Copies a batch from a peer; DONE or FAILED."""
        return await self._flights.fly(transport, lambda: transport.read(peer, batch))

    async def write(self, transport: Transport, peer: PeerName, batch: Batch) -> TransferStatus:
        """Copies a batch to a peer. DONE: all of it has arrived. FAILED: some of it may still arrive."""
        return await self._flights.fly(transport, lambda: transport.write(peer, batch))

    # -- the pump runs only while there is something to serve, or a transfer whose end no transport tells

    def _start_pump(self) -> None:
        if self._pump is None or self._pump.done():
            self._pump = self._tasks.spawn("pump", self._run_pump())

    async def _run_pump(self) -> None:
        while self._flights.polled or self._serves():
            if self._expected:
                self._progress()
            self._flights.poll()
            await asyncio.sleep(0 if self._flights.napped() else _TICK_SECONDS)

    def _serves(self) -> bool:
        now = time.monotonic()
        for reader in [reader for reader, until in self._expected.items() if until < now]:
            del self._expected[reader]
        return bool(self._expected) and any(t.needs_progress for t in self._transports.values())

    def _progress(self) -> None:
        for transport in self._transports.values():
            if transport.needs_progress:
                _guarded(transport.progress)

    async def _progress_at_rest(self) -> None:
        """Connections of strangers are closed in `progress` only, so it also runs while no peer is expected:
        they would use up the file descriptors of this process."""
        while any(transport.needs_progress for transport in self._transports.values()):
            for _ in range(_REST_STEPS):
                self._progress()
            await asyncio.sleep(_REST_SECONDS)

    # -- the thread

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._tasks = TaskOwner("kv-transfer")
        self._flights.loop = self._loop
        if self._staging is not None:
            _guarded(self._staging.copies.enter)  # transports set up paths to the device in this thread
        self._tasks.spawn("rest", self._progress_at_rest())
        self._ready.set()
        await self._stop.wait()
        await self._tasks.aclose()
        self._close_transports()

    def _close_transports(self) -> None:
        for transport in self._transports.values():
            _guarded(transport.close)


def _guarded(action: Callable[[], None]) -> None:
    try:
        action()
    except TransferError as error:
        _log.warning("transport: %s", error)
