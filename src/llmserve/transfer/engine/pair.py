"""This process and one peer: connections over each transport, fair turns, probes, and the fallback.

Contract, for both clients: `over_any` tries the transports in the order that `choice` decides. A transport
that fails opens its breaker, and the next one takes over within the same call. Only a probe closes a breaker.
Bytes move in the turns of a lane, within the budget of the process, and each transfer has a deadline that
follows from the last probe. On the engine's loop only.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import partial

from llmserve.core.aio import wait_ended
from llmserve.core.errors import TransferError
from llmserve.core.request import PairStatus
from llmserve.transfer.base import Batch, PeerName, TransferState, TransferStatus, Transport
from llmserve.transfer.engine.choice import Measured, PairChoice
from llmserve.transfer.engine.engine import TransferEngine
from llmserve.transfer.engine.lane import Lane
from llmserve.transfer.engine.probe import ProbeInfo, measure

_log = logging.getLogger(__name__)
PROBE_SECONDS = 5.0

Check = Callable[[], Awaitable[None]]  # compares what has arrived. Errors: TransferError
_Move = Callable[[Transport, PeerName, Batch], Coroutine[object, object, TransferStatus]]


class Doubtful(TransferError):
    """Raised by an attempt that wants the next transport to be tried, although this one has not failed."""


class Pair:
    """In the matrix of its engine until `close`. lost: done with the reason once the peer is gone; reads end
    with it. on_failure: called after a breaker has opened."""

    def __init__(
        self,
        engine: TransferEngine,
        peer: str,
        descriptions: Mapping[str, bytes],
        probe: ProbeInfo,
        choice: PairChoice | None = None,
    ) -> None:
        """peer: name in logs and in the matrix. descriptions: how to reach the peer, by transport. choice:
        what was learnt of this peer over an earlier connection."""
        common = tuple(name for name in engine.transports if name in descriptions)
        self.peer = peer
        self.choice = choice or PairChoice(common, engine.policy.slow_factor)
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.on_failure: Callable[[], object] = lambda: None
        self._engine = engine
        self._descriptions = descriptions
        self._probe = probe
        self._connected: dict[str, PeerName] = {}
        self._read_lanes: dict[str, Lane] = {}
        self._write_lanes: dict[str, Lane] = {}
        engine.matrix.add(self.rows)

    def rows(self) -> Iterable[PairStatus]:
        """Rows of the matrix. Any thread."""
        return self.choice.rows(self.peer, self._engine.clock.now())

    # -- which transport

    async def over_any(self, attempt: Callable[[str], Awaitable[None]], failures: list[str]) -> None:
        """attempt: moves everything over the transport of that name. failures: receives "transport: reason"
        of each one that did not. Errors: TransferError with every reason."""
        for name in self.choice.ranked(self._engine.clock.now()):
            try:
                await attempt(name)
                return
            except Doubtful as error:
                failures.append(f"{name}: {error.message}")
                continue
            except TransferError as error:
                reason = error.message
            failures.append(f"{name}: {reason}")
            if self.lost.done():  # the peer failed, not the transport
                break
            self.failed(name, reason)
        raise TransferError("; ".join(failures) or self._nothing_in_common())

    def _nothing_in_common(self) -> str:
        """Names what reaches the memory of each side."""
        here, there = (", ".join(names) or "none" for names in (self._engine.transports, self._descriptions))
        return f"no transport in common with {self.peer}: {here} here, {there} there"

    def failed(self, name: str, reason: str) -> None:
        """Opens the breaker of a transport. Requests that wait for its lane go another way."""
        _log.warning("kv transfer with %s over %s failed: %s", self.peer, name, reason)
        self._engine.counters.of(name).failures += 1
        self.choice.failed(name, reason, self._engine.clock.now())
        for lanes in (self._read_lanes, self._write_lanes):
            if lane := lanes.get(name):
                lane.refuse_waiting(f"out of use: {reason}")
        self._disconnect(name)
        self.on_failure()

    # -- moving

    async def read(self, name: str, batch: Batch, check: Check) -> float:
        """Copies a batch from the peer and checks it. Returns the seconds that it took. When it returns,
        fails or has been cancelled, local memory is no longer touched. Errors: TransferError."""
        started = time.monotonic()
        lane = self._lane(self._read_lanes, name, self._engine.read)
        await self._while_there(lane.move(batch))
        return await self._finish(name, batch, check, started)

    async def write(self, name: str, batch: Batch, check: Check, unclean: set[str]) -> float:
        """Copies a batch to the peer and checks it. Returns the seconds that it took. unclean: holds the
        transport while bytes may still arrive at the far end. Errors: TransferError."""
        if self.lost.done():
            raise TransferError(self.lost.result())
        started = time.monotonic()
        lane = self._lane(self._write_lanes, name, self._engine.write)
        unclean.add(name)
        _check_done(await lane.move(batch))
        unclean.discard(name)
        return await self._finish(name, batch, check, started)

    async def _finish(self, name: str, batch: Batch, check: Check, started: float) -> float:
        await check()
        seconds = time.monotonic() - started
        self.choice.moved(name, batch.local.total_bytes, seconds)
        return seconds

    async def _while_there(self, move: Coroutine[object, object, TransferStatus]) -> None:
        """Ends a read when the peer is gone."""
        task = self._engine.spawn("read", move)
        try:
            await asyncio.wait((task, self.lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            await wait_ended([task])  # a result must not be seen while memory may change
        if task.cancelled():
            raise TransferError(self.lost.result() if self.lost.done() else "cancelled")
        _check_done(task.result())

    def _lane(self, lanes: dict[str, Lane], name: str, move: _Move) -> Lane:
        if name not in lanes:
            lanes[name] = Lane(
                partial(self._move, name, move), partial(self._limit, name), self._engine.bucket
            )
        return lanes[name]

    async def _move(self, name: str, move: _Move, batch: Batch) -> TransferStatus:
        try:
            return await move(*self._connect(name), batch)
        except TransferError as error:
            return TransferStatus(TransferState.FAILED, error.message)

    def _limit(self, name: str, size_bytes: int) -> float:
        return self._engine.policy.limit_seconds(self.choice.expected_seconds(name, size_bytes))

    # -- connections

    def _connect(self, name: str) -> tuple[Transport, PeerName]:
        transport = self._engine.transports.get(name)
        if transport is None:
            raise TransferError(f"{name} was given up")
        if name not in self._connected:
            self._connected[name] = transport.connect(self._descriptions[name])
        return transport, self._connected[name]

    def _disconnect(self, name: str) -> None:
        peer, transport = self._connected.pop(name, None), self._engine.transports.get(name)
        if peer is not None and transport is not None:
            transport.disconnect(peer)

    def close(self, reason: str) -> None:
        """Idempotent. Reads under way end."""
        if not self.lost.done():
            self.lost.set_result(reason)
            self._engine.matrix.remove(self.rows)
            for name in list(self._connected):
                self._disconnect(name)

    # -- probes

    async def probe_due(self, prepare: Check) -> None:
        """Probes the transports that were never probed, and those whose breaker is half-open. prepare: lets
        the peer know that a probe follows. Never raises TransferError."""
        for name in self.choice.due(self._engine.clock.now()):
            try:
                measured = await self._measured(name, prepare)
            except TransferError as error:
                if not self.lost.done():
                    self._probe_failed(name, f"probe: {error.message}")
            else:
                self.choice.probed(name, measured, self._engine.clock.now())
                _log.info(
                    "kv probe of %s over %s: %.2f ms small, %.2f GB/s",
                    self.peer,
                    name,
                    1e3 * measured.small_seconds,
                    measured.bytes_per_second / 1e9,
                )

    async def _measured(self, name: str, prepare: Check) -> Measured:
        """Measures a transport, beside the lanes. Errors: TransferError."""
        async with self._engine.probing:
            await prepare()
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    return await measure(self._engine.probe, self._probe, partial(self._probe_read, name))
            except TimeoutError:
                raise TransferError(f"the probe was not done within {PROBE_SECONDS:g} s") from None

    async def _probe_read(self, name: str, batch: Batch) -> TransferStatus:
        return await self._move(name, self._engine.read, batch)

    def _probe_failed(self, name: str, reason: str) -> None:
        """A reason is logged once: a peer on another host stays there."""
        if self.choice.reason(name) != reason:
            _log.warning("kv from %s over %s: %s", self.peer, name, reason)
        self.choice.failed(name, reason, self._engine.clock.now())
        self._disconnect(name)


def _check_done(status: TransferStatus) -> None:
    if status.state is not TransferState.DONE:
        raise TransferError(status.reason or "failed without a reason")
