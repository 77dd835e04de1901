"""Gives leases back in the background: losing one costs blocks only until it expires."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from llmserve.core.errors import InvalidRequest, LLMServeError, TransferError
from llmserve.core.kv_params import PullParams
from llmserve.core.tasks import TaskOwner

_log = logging.getLogger(__name__)

_RELEASE_SECONDS = 3.0

ReleaseTicket = Callable[[PullParams, float], Awaitable[bool]]


class LeaseReleaser:
    """release_ticket: engines.kv_transfer's; False when the lease had ended already."""

    def __init__(self, release_ticket: ReleaseTicket, tasks: TaskOwner) -> None:
        self._release_ticket = release_ticket
        self._tasks = tasks

    async def release(self, params: Mapping[str, Any]) -> bool:
        """Errors: InvalidRequest (no ticket), TransferError, DeadlineExceeded."""
        try:
            ticket = PullParams.from_params(params)
        except TransferError as error:
            raise InvalidRequest(error.message) from error
        return await self._release_ticket(ticket, _RELEASE_SECONDS)

    def release_soon(self, tickets: Iterable[Mapping[str, Any]]) -> None:
        for params in tickets:
            self._tasks.spawn("release", self._release_quietly(params))

    async def _release_quietly(self, params: Mapping[str, Any]) -> None:
        lease_id = params.get("lease_id")
        try:
            released = await self.release(params)
        except LLMServeError as error:
            _log.warning("releasing a lease failed, it will expire: lease=%s: %s", lease_id, error.message)
        else:
            _log.info("lease given back: lease=%s still_open=%s", lease_id, released)
