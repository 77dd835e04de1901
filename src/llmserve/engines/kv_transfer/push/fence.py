"""The fence around blocks of decode that prefill may write into: who is let in, and how decode makes sure
that a writer which was let in writes no more.

`ReservationTable` decides who is let in. `unclean_after_stop` asks a writer to stop. A writer that does not
answer may be gone, or cut off, or only suspended. What a writer on another host sends reaches this memory
through its transports, and a fence keeps it out. A writer on this host may have the kernel copy for it,
straight into this process (shm, NIXL's and UCX's shared memory): nothing here can keep that out, so it is
waited for until it answers, or until nobody listens at its port any more. After `StopLimits.local_seconds`
that wait ends, too: the blocks are then kept for good.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from llmserve.core.clock import SystemClock
from llmserve.core.errors import LeaseEnded, PeerGone, TransferError
from llmserve.core.ids import ReservationId
from llmserve.core.kv_params import split_endpoint
from llmserve.core.lease_table import REMEMBERED_ENDS, LeaseAnswer, LeaseTable
from llmserve.engines.kv_transfer.protocol import PushStanding, PushState

_log = logging.getLogger(__name__)
_WRITING_RETRY_SECONDS = 0.005
_SILENT_RETRY_SECONDS = 0.25


class Writes(Enum):
    """What may still happen to blocks whose reservation was closed."""

    NEVER_BEGAN = "never began"  # and never will: the blocks are free now
    MAY_GO_ON = "may go on"  # only the writer, or a fence, can tell their end
    ENDED = "ended"  # the writer has said so


@dataclass(slots=True)
class _Reserved:
    """fences: how often each transport had been fenced when the writer was let in."""

    begun: bool = False
    ended: bool = False
    fences: Mapping[str, int] = field(default_factory=dict)


class ReservationTable:
    """A reservation is open until `close`, and never expires. The writer is let in at most once, and only
    while it is open. Pure; the table belongs to one loop."""

    def __init__(self, epoch: int, remembered_ends: int = REMEMBERED_ENDS) -> None:
        """epoch: incarnation of this process. remembered_ends: see LeaseTable."""
        self.epoch = epoch
        self._open: LeaseTable[ReservationId, _Reserved] = LeaseTable(
            SystemClock(), epoch=epoch, remembered_ends=remembered_ends
        )

    def __len__(self) -> int:
        return len(self._open)

    # -- the owner of the blocks

    def open(self, reservation_id: ReservationId) -> None:
        assert reservation_id not in self._open, "reservation ids are used once"
        self._open.grant(reservation_id, _Reserved())

    def close(self, reservation_id: ReservationId) -> Writes:
        """From now on nobody is let in. The caller frees the blocks when writes have ended."""
        entry = self._open.release(reservation_id)
        if not entry.begun:
            return Writes.NEVER_BEGAN
        return Writes.ENDED if entry.ended else Writes.MAY_GO_ON

    def fences_at_begin(self, reservation_id: ReservationId) -> Mapping[str, int]:
        return self._open[reservation_id].fences

    # -- the writer

    def begin(self, reservation_id: ReservationId, epoch: int, fences: Mapping[str, int]) -> LeaseAnswer:
        """The first write follows. VALID only once."""
        answer = self._open.check(reservation_id, epoch)
        if answer is not LeaseAnswer.VALID:
            return answer
        entry = self._open[reservation_id]
        if entry.begun:
            return LeaseAnswer.ENDED
        entry.begun, entry.fences = True, dict(fences)
        return LeaseAnswer.VALID

    def end(self, reservation_id: ReservationId, epoch: int) -> LeaseAnswer:
        """No write follows, whatever came of them. VALID also when it is said again."""
        answer = self._open.check(reservation_id, epoch)
        if answer is LeaseAnswer.VALID:
            entry = self._open[reservation_id]
            entry.begun = entry.ended = True
        return answer

    def check_integrity(self) -> None:
        """Raises AssertionError if the table contradicts itself. For tests and debugging."""
        self._open.check_integrity()
        assert all(entry.begun or not entry.ended for entry in self._open.values())


class WriterSuspended(TransferError):
    """A writer on this host has not answered for so long that it is no longer waited for. It may still
    write."""


@dataclass(frozen=True, slots=True)
class StopLimits:
    """remote_seconds: how long a writer on another host may be silent. local_seconds: the same on this
    host."""

    remote_seconds: float = 5.0
    local_seconds: float = 1800.0


async def unclean_after_stop(
    ask: Callable[[], Awaitable[PushStanding]],
    transports: tuple[str, ...],
    limits: StopLimits,
    *,
    same_host: bool,
) -> tuple[str, ...]:
    """Returns the transports that have to be fenced. ask: tells the writer to stop, and returns how it
    stands. Errors: WriterSuspended."""
    now = asyncio.get_running_loop().time
    heard, is_logged = now(), False
    while True:
        try:
            async with asyncio.timeout_at(
                heard + (limits.local_seconds if same_host else limits.remote_seconds)
            ):
                answer = await ask()
            if answer.state is PushState.STOPPED:
                return answer.unclean
            if answer.state is not PushState.WRITING:
                return transports
            heard = now()
            await asyncio.sleep(_WRITING_RETRY_SECONDS)
        except (PeerGone, LeaseEnded):
            return transports
        except TimeoutError:
            if not same_host:
                return transports
            raise WriterSuspended(
                f"the writer has not answered for {limits.local_seconds:g} s, and may still write"
            ) from None
        except TransferError as error:
            if not is_logged:
                is_logged = True
                _log.warning("kv push: its writer does not answer, its blocks are kept: %s", error.message)
            await asyncio.sleep(_SILENT_RETRY_SECONDS)


def are_on_one_host(endpoint: str, other: str) -> bool:
    """By their addresses: then a port at which nobody listens proves that its process is gone."""
    return split_endpoint(endpoint)[0] == split_endpoint(other)[0]
