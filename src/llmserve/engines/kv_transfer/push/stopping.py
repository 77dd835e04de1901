"""How decode makes sure that a writer which was let in writes no more.

It asks. A writer that does not answer may be gone, or cut off, or only suspended. What one on another host
sends reaches this memory through its transports, and a fence keeps it out. One on this host may have the
kernel copy for it, straight into this process (shm, NIXL's and UCX's shared memory): nothing here can keep
that out, so it is waited for until it answers, or until nobody listens at its port any more.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from llmserve.core.errors import LeaseEnded, PeerGone, TransferError
from llmserve.core.fields import split_endpoint
from llmserve.engines.kv_transfer.push.messages import PushState, StateAnswer

_log = logging.getLogger(__name__)
_WRITING_RETRY_SECONDS = 0.005
_SILENT_RETRY_SECONDS = 0.25


async def unclean_after_stop(
    ask: Callable[[], Awaitable[StateAnswer]],
    transports: tuple[str, ...],
    patience_seconds: float,
    *,
    same_host: bool,
) -> tuple[str, ...]:
    """Which of the transports have to be fenced. ask: tells the writer to stop, and how it stands.
    patience_seconds: how long one on another host may be silent."""
    now = asyncio.get_running_loop().time
    heard, told = now(), False
    while True:
        give_up = None if same_host else heard + patience_seconds
        try:
            async with asyncio.timeout_at(give_up):
                answer = await ask()
            if answer.state is PushState.STOPPED:
                return answer.unclean
            if answer.state is not PushState.WRITING:
                return transports
            heard = now()
            await asyncio.sleep(_WRITING_RETRY_SECONDS)
        except (PeerGone, LeaseEnded, TimeoutError):
            return transports
        except TransferError as error:
            if not told:
                told = True
                _log.warning("kv push: its writer does not answer, its blocks are kept: %s", error.message)
            await asyncio.sleep(_SILENT_RETRY_SECONDS)


def are_on_one_host(endpoint: str, other: str) -> bool:
    """By their addresses: then a port at which nobody listens proves that its process is gone."""
    return split_endpoint(endpoint)[0] == split_endpoint(other)[0]
