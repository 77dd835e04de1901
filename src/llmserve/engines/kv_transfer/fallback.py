"""The transports of a pair in turn, until one of them moves a batch."""

import time
from collections.abc import Awaitable, Callable

from llmserve.core.errors import TransferError
from llmserve.engines.kv_transfer.peers import Peer
from llmserve.engines.kv_transfer.status import TransferCounters

OnTransferFailed = Callable[[Peer, str, str], None]  # peer, transport, reason


async def over_any(
    peer: Peer,
    attempt: Callable[[str], Awaitable[None]],
    counters: TransferCounters,
    on_transfer_failed: OnTransferFailed,
    failures: list[str],
) -> None:
    """attempt: moves everything over the transport of that name. failures: gets "transport: reason" of each
    that did not. Errors: TransferError with every reason."""
    for name in peer.choice.ranked(time.monotonic()):
        try:
            await attempt(name)
            return
        except TransferError as error:
            reason = error.message
        failures.append(f"{name}: {reason}")
        if peer.lost.done():  # the worker's trouble, not the transport's
            break
        counters.of(name).failures += 1
        on_transfer_failed(peer, name, reason)
    raise TransferError("; ".join(failures) or f"no transport in common with {peer.endpoint}")
