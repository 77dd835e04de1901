"""How decode makes sure that a writer which was let in writes no more.

It asks the writer to stop. A writer that does not answer may be gone, or cut off, or only suspended. What a
writer on another host sends reaches this memory through its transports, and a fence keeps it out. A writer on
this host may have the kernel copy for it, straight into this process (shm, NIXL's and UCX's shared memory):
nothing here can keep that out, so it is waited for until it answers, or until nobody listens at its port any
more. After `StopLimits.local_seconds` that wait ends, too: the blocks are then kept for good.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from llmserve.core.errors import LeaseEnded, PeerGone, TransferError
from llmserve.core.kv_params import split_endpoint
from llmserve.engines.kv_transfer.protocol import PushStanding, PushState

_log = logging.getLogger(__name__)
_WRITING_RETRY_SECONDS = 0.005
_SILENT_RETRY_SECONDS = 0.25


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
