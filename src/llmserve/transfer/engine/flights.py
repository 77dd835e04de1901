"""The transfers in flight of an engine, and how their ends are noticed.

A transport that can tell of an end calls `look`. The transfers of the others are polled by the engine's pump.
On the engine's loop only, but for `look`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Transfer, TransferState, TransferStatus, Transport

_log = logging.getLogger(__name__)
CANCEL_SECONDS = 30.0
_RETRY_CANCEL_SECONDS = 0.05
# (age of the youngest transfer in seconds, seconds until the next look while it is below that age)
_NAPS = ((0.01, 0.00005), (0.1, 0.0002))


@dataclass(eq=False, slots=True)
class TransferFlight:
    transport: Transport
    transfer: Transfer
    done: asyncio.Future[TransferStatus]
    started: float

    def poll(self) -> TransferStatus:
        try:
            return self.transport.poll(self.transfer)
        except TransferError as error:
            return TransferStatus(TransferState.FAILED, error.message)

    def cancelled(self) -> bool:
        """Tries to cancel it."""
        try:
            self.transport.cancel(self.transfer)
        except TransferError as error:
            _log.warning("a transfer over %s does not end yet: %s", self.transport.name, error.message)
            return False
        return True


class Flights:
    """start_pump: lets the engine call `poll` while there is something in `polled`. give_up: closes a
    transport for good that cannot cancel a transfer within CANCEL_SECONDS. loop: is set before the first
    transfer."""

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        transports: Iterable[Transport],
        start_pump: Callable[[], None],
        give_up: Callable[[Transport, str], None],
    ) -> None:
        self._flying: list[TransferFlight] = []
        self._watched = {transport.name for transport in transports if transport.watch(self.look)}
        self._start_pump = start_pump
        self._give_up = give_up

    def __len__(self) -> int:
        return len(self._flying)

    async def fly(self, transport: Transport, start: Callable[[], Transfer]) -> TransferStatus:
        """Starts a transfer and waits for its end; DONE or FAILED. When its cancellation ends, the transfer
        no longer touches local memory."""
        now = time.monotonic()
        try:
            transfer = start()
        except TransferError as error:
            return TransferStatus(TransferState.FAILED, error.message)
        flight = TransferFlight(transport, transfer, self.loop.create_future(), now)
        status = flight.poll()  # a one-sided read may have completed already
        if status.state is not TransferState.RUNNING:
            return status
        self._flying.append(flight)
        if transport.name not in self._watched:
            self._start_pump()
        try:
            return await flight.done
        except asyncio.CancelledError:
            await self._cancel(flight)
            raise

    async def _cancel(self, flight: TransferFlight) -> None:
        if flight not in self._flying:
            return
        self._flying.remove(flight)
        give_up = time.monotonic() + CANCEL_SECONDS
        while not flight.cancelled():
            if time.monotonic() > give_up:
                self._give_up(flight.transport, f"a transfer does not end within {CANCEL_SECONDS:g} s")
                return
            await asyncio.sleep(_RETRY_CANCEL_SECONDS)

    def look(self) -> None:
        """Polls soon: a transfer has ended. Any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self.poll)

    @property
    def polled(self) -> list[TransferFlight]:
        """Those whose end no transport tells."""
        return [flight for flight in self._flying if flight.transport.name not in self._watched]

    def poll(self) -> None:
        for flight in list(self._flying):
            status = flight.poll()
            if status.state is not TransferState.RUNNING:
                self._flying.remove(flight)
                if not flight.done.done():
                    flight.done.set_result(status)

    def napped(self) -> bool:
        """Sleeps for less than any timer of the loop can, while a transfer is so young that a millisecond
        matters; a transfer that hangs must slow down nothing else. The loop runs between two naps."""
        polled = self.polled
        if not polled:
            return False
        age = time.monotonic() - max(flight.started for flight in polled)
        nap = next((nap for young, nap in _NAPS if age < young), None)
        if nap is not None:
            time.sleep(nap)
        return nap is not None
