"""One transport to one peer, shared by many requests.

Requests do not wait for each other's last byte: the lane goes round among them, a few MiB of each at a
time, so that a small hand-over is not stuck behind a large one; what it takes in one round goes to the
transport as one batch. Two rounds are in flight, so that the wire does not fall idle between them.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from llmserve.core.aio import wait_ended
from llmserve.transfer.base import Batch, Int64Array, TransferState, TransferStatus
from llmserve.transfer.spans import concatenated

QUANTUM_BYTES = 4 << 20
ROUND_BYTES = 16 << 20
# Pieces cost a transport time whatever their size, about 2 µs each. Where block sizes or ranks differ there
# can be a hundred thousand of a few bytes.
QUANTUM_PIECES = 4096
ROUND_PIECES = 16384
_ROUNDS_IN_FLIGHT = 2
_BURST_SECONDS = 0.05

Copy = Callable[[Batch], Coroutine[object, object, TransferStatus]]
_DONE = TransferStatus(TransferState.DONE)


class Limit(Protocol):
    """The longest that a copy of so many bytes may take before it counts as failed, in seconds."""

    def __call__(self, size_bytes: int) -> float: ...


@dataclass(eq=False, slots=True)
class _Flow:
    """A request's batch. ends[i]: bytes of pieces 0 to i together. next_piece: the first not yet taken."""

    batch: Batch
    ends: Int64Array
    done: asyncio.Future[TransferStatus]
    next_piece: int = 0
    rounds: set["_Round"] = field(default_factory=set)

    @property
    def is_taken(self) -> bool:
        return self.next_piece == len(self.ends)

    def take(self, at_most: int) -> tuple[Batch, int]:
        """The next pieces, at least one; and their bytes."""
        first = self.next_piece
        before = int(self.ends[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(self.ends, before + at_most, side="right")))
        end = min(end, first + QUANTUM_PIECES)
        self.next_piece = end
        pieces = slice(first, end)
        part = Batch(self.batch.local.cut(pieces), self.batch.remote.cut(pieces))
        return part, int(self.ends[end - 1]) - before


@dataclass(eq=False, slots=True)
class _Round:
    """What goes to the transport at once. flows: those that still wait for it. given_up: why the lane
    cancelled it."""

    flows: set[_Flow]
    task: asyncio.Task[None] | None = None
    given_up: str = ""


class TokenBucket:
    """Lets at most bytes_per_second pass over any longer time, and at most 50 ms of it at once. Any
    thread."""

    def __init__(self, bytes_per_second: float) -> None:
        self.burst_bytes = max(1, int(bytes_per_second * _BURST_SECONDS))
        self._rate = bytes_per_second
        self._free_at = float("-inf")
        self._lock = threading.Lock()

    def take(self, size_bytes: int, now: float) -> float:
        """Books the bytes, in the order of the calls. Returns the seconds to wait before moving them."""
        with self._lock:
            start = max(self._free_at, now - _BURST_SECONDS)
            self._free_at = start + size_bytes / self._rate
            return max(0.0, self._free_at - now)


class Lane:
    """copy: a read or a write of the transport to the peer; when it returns, or its cancellation has ended,
    local memory is no longer touched. bucket: shared with the other lanes of this process. All on one loop.
    """

    def __init__(self, copy: Copy, limit: Limit, bucket: TokenBucket | None = None) -> None:
        self._copy = copy
        self._limit = limit
        self._bucket = bucket
        self._round_bytes = min(ROUND_BYTES, bucket.burst_bytes) if bucket else ROUND_BYTES
        self._waiting: deque[_Flow] = deque()
        self._rounds: set[_Round] = set()
        self._free = asyncio.Semaphore(_ROUNDS_IN_FLIGHT)
        self._driver: asyncio.Task[None] | None = None

    async def move(self, batch: Batch) -> TransferStatus:
        """Copies a batch; DONE or FAILED. When it returns or has been cancelled, no copying of it is left."""
        if len(batch.local.lengths) == 0:
            return _DONE
        flow = _Flow(batch, np.cumsum(batch.local.lengths), asyncio.get_running_loop().create_future())
        self._waiting.append(flow)
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive(), name="lane")
        try:
            return await flow.done
        finally:
            await self._leave(flow)

    def refuse_waiting(self, reason: str) -> None:
        """The transport is out of use: those that wait for their turn need not find that out themselves."""
        for flow in self._waiting:
            self._conclude(flow, TransferStatus(TransferState.FAILED, reason))

    async def _leave(self, flow: _Flow) -> None:
        """Gives up what was not taken, and waits for what was: a round is cancelled when nobody is left
        in it. A cancellation of the waiter is raised after that."""
        if flow in self._waiting:
            self._waiting.remove(flow)
        await wait_ended([self._leave_rounds(flow)])

    async def _leave_rounds(self, flow: _Flow) -> None:
        for round_ in list(flow.rounds):
            round_.flows.discard(flow)
            assert round_.task is not None
            if not round_.flows:
                round_.task.cancel()
            await asyncio.wait((round_.task,))

    # -- rounds

    async def _drive(self) -> None:
        while self._waiting:
            await self._free.acquire()
            parts, size, flows = self._next_round()
            if not parts:  # they left while this waited
                self._free.release()
                return
            round_ = _Round(flows)
            for flow in flows:
                flow.rounds.add(round_)
            self._rounds.add(round_)
            round_.task = asyncio.create_task(self._run(round_, concatenated(parts), size), name="lane.round")

    def _next_round(self) -> tuple[list[Batch], int, set[_Flow]]:
        parts: list[Batch] = []
        size, pieces, flows = 0, 0, set()
        while self._waiting and size < self._round_bytes and pieces < ROUND_PIECES:
            flow = self._waiting.popleft()
            part, taken = flow.take(min(QUANTUM_BYTES, self._round_bytes - size))
            parts.append(part)
            flows.add(flow)
            size += taken
            pieces += len(part.local.lengths)
            if not flow.is_taken:
                self._waiting.append(flow)
        return parts, size, flows

    async def _run(self, round_: _Round, batch: Batch, size: int) -> None:
        status = TransferStatus(TransferState.FAILED, "cancelled")
        try:
            status = await self._paced(batch, size)
        except asyncio.CancelledError:
            if not round_.given_up:
                raise
            status = TransferStatus(TransferState.FAILED, round_.given_up)
        finally:
            self._rounds.discard(round_)
            self._free.release()
            for flow in round_.flows:
                flow.rounds.discard(round_)
                self._conclude(flow, status)

    async def _paced(self, batch: Batch, size: int) -> TransferStatus:
        if self._bucket is not None:
            await asyncio.sleep(self._bucket.take(size, time.monotonic()))
        limit = self._limit(size)
        try:
            async with asyncio.timeout(limit):
                return await self._copy(batch)
        except TimeoutError:
            reason = f"too slow: {size} bytes not done within {limit:.3g} s"
            self._give_up(reason)
            return TransferStatus(TransferState.FAILED, reason)

    def _give_up(self, reason: str) -> None:
        """The transport hangs: what it was given later would only find that out later."""
        self.refuse_waiting(reason)
        for round_ in self._rounds:
            if round_.task is not None and round_.task is not asyncio.current_task():
                round_.given_up = reason
                round_.task.cancel()

    @staticmethod
    def _conclude(flow: _Flow, status: TransferStatus) -> None:
        if flow.done.done():
            return
        if status.state is not TransferState.DONE:
            flow.done.set_result(status)
        elif flow.is_taken and not flow.rounds:
            flow.done.set_result(_DONE)
