"""How many tokens an event of a stream carries at least.

Each event costs this process as much as a token does. When its loop is late, clients get their tokens late
anyhow, and fewer events let it catch up. Requests keep the interval with which they began, and the first
token and the last ones are sent at once, whatever the interval is.
"""

import asyncio
from collections.abc import Callable

MOST_TOKENS = 8

_LOOK_SECONDS = 0.5
# Less than people notice; and what an idle loop on a busy machine is late by.
_LATE_SECONDS, _PUNCTUAL_SECONDS = 0.1, 0.02


def next_interval(tokens: int, late_seconds: float) -> int:
    """Returns the interval for the next requests. late_seconds: by which a timer of the loop was late."""
    if late_seconds > _LATE_SECONDS:
        return min(MOST_TOKENS, 2 * tokens)
    return max(1, tokens // 2) if late_seconds < _PUNCTUAL_SECONDS else tokens


async def adapt_interval(set_interval: Callable[[int], None]) -> None:
    """Sets the interval by how late the loop is. Runs for ever."""
    loop, tokens = asyncio.get_running_loop(), 1
    while True:
        due = loop.time() + _LOOK_SECONDS
        await asyncio.sleep(_LOOK_SECONDS)
        chosen = next_interval(tokens, loop.time() - due)
        if chosen != tokens:
            tokens = chosen
            set_interval(tokens)
