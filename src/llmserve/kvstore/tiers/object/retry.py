"""One request, tried until it works or patience ends."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from llmserve.kvstore.tiers.object.settings import Patience
from llmserve.kvstore.tiers.object.trouble import PASSING, RequestFailed, Trouble, explain
from llmserve.rpc.backoff import Backoff

_T = TypeVar("_T")
Attempt: TypeAlias = Callable[[], Awaitable[_T]]


async def retried(attempt: Attempt[_T], patience: Patience, retrying: Callable[[Trouble], None]) -> _T:
    """retrying is told of every attempt that failed and is followed by another. Errors: RequestFailed,
    with the trouble of the last attempt."""
    backoff = Backoff(patience.first_pause_seconds, patience.longest_pause_seconds)
    over_at = asyncio.get_running_loop().time() + patience.deadline_seconds
    for attempts_left in reversed(range(patience.attempts)):
        try:
            return await _once(attempt, patience.attempt_seconds, over_at)
        except RequestFailed as failed:
            pause = backoff.next()
            too_late = asyncio.get_running_loop().time() + pause >= over_at
            if not attempts_left or too_late or failed.trouble not in PASSING:
                raise
            retrying(failed.trouble)
            await asyncio.sleep(pause)
    raise AssertionError("patience has at least one attempt")


async def _once(attempt: Attempt[_T], seconds: float, over_at: float) -> _T:
    ends_at = min(over_at, asyncio.get_running_loop().time() + seconds)
    try:
        async with asyncio.timeout_at(ends_at):
            return await attempt()
    except RequestFailed:
        raise
    except TimeoutError:
        raise RequestFailed(Trouble.SLOW, f"{Trouble.SLOW}: no answer within {seconds:.3g} s") from None
    except Exception as error:
        raise explain(error) from None  # obstore's own text may hold what is secret
