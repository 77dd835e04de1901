"""How often, and for how long, a request is tried."""

import asyncio

import pytest
from obstore.exceptions import GenericError

from llmserve.buckets.failures import FailureKind, RequestFailed
from llmserve.kvstore.tiers.object.bucket import retried
from llmserve.kvstore.tiers.object.settings import RetryPolicy

QUICK = RetryPolicy(3, 5.0, 30.0, first_pause_seconds=0.001, longest_pause_seconds=0.002)
BROKEN = GenericError("Generic S3 error: HTTP error: gone away")
DENIED = GenericError("status code: 403: no")


class Server:
    """Raises what it is given, one after the other, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.asked = 0

    async def answer(self) -> str:
        self.asked += 1
        if self._errors:
            raise self._errors.pop(0)
        return "answer"


async def test_what_passes_is_tried_again_and_counted() -> None:
    server, seen = Server(BROKEN, BROKEN), list[FailureKind]()
    assert await retried(server.answer, QUICK, seen.append) == "answer"
    assert (server.asked, seen) == (3, [FailureKind.UNREACHABLE] * 2)


async def test_it_ends_with_the_last_attempt() -> None:
    server = Server(*[BROKEN] * 9)
    with pytest.raises(RequestFailed) as failed:
        await retried(server.answer, QUICK, lambda kind: None)
    assert (server.asked, failed.value.kind) == (3, FailureKind.UNREACHABLE)


async def test_what_does_not_pass_is_not_tried_again() -> None:
    server = Server(DENIED)
    with pytest.raises(RequestFailed):
        await retried(server.answer, QUICK, lambda kind: None)
    assert server.asked == 1


async def test_no_answer_is_given_up_and_tried_again() -> None:
    seen = list[FailureKind]()

    async def silent() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RequestFailed) as failed:
        await retried(silent, RetryPolicy(2, 0.01, 1.0, 0.001), seen.append)
    assert (failed.value.kind, seen) == (FailureKind.SLOW, [FailureKind.SLOW])


async def test_the_deadline_ends_it_before_the_attempts_do() -> None:
    server = Server(*[BROKEN] * 1000)
    with pytest.raises(RequestFailed):
        await retried(server.answer, RetryPolicy(1000, 1.0, 0.3, 0.01, 0.01), lambda kind: None)
    assert 1 < server.asked < 100
