"""The cluster's status as bytes: once for all admins who watch, and once for all viewers of a tenant."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import fields, replace
from typing import Any

import msgspec

from llmserve.apiserver.auth.caller import Caller
from llmserve.apiserver.console.sampler import HistoryPoint, Sampler, for_events
from llmserve.overview.parts import for_tenant
from llmserve.overview.views import Snapshot

encode = msgspec.json.Encoder().encode


def encoded(now: Snapshot) -> bytes:
    """Returns the JSON of overview.views.as_json, without the copies that it makes on the way."""
    return encode(_shape(now))


def _shape(now: Snapshot) -> dict[str, Any]:
    return {"healthy": not now.problems, **{one.name: getattr(now, one.name) for one in fields(now)}}


def seen_by(caller: Caller, now: Snapshot) -> Snapshot:
    return now if caller.admin else for_tenant(now, caller.tenant)


class StatusEvents:
    """Server-sent events: `history`, with the latest minutes; then `status` at each look."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._last: Snapshot | None = None
        self._written: dict[str, bytes] = {}  # of the last look, by tenant; empty: for admins

    async def of(
        self, caller: Caller, is_allowed: Callable[[], Awaitable[bool]]
    ) -> AsyncGenerator[bytes, None]:
        """is_allowed: whether the caller may still see them. They end with the first look at which not."""
        yield _event("history", encode({"points": self._history(caller)}))
        async for now in self._sampler.watch():
            if not await is_allowed():
                return
            yield self._status(now, "" if caller.admin else str(caller.tenant))

    def _history(self, caller: Caller) -> list[HistoryPoint]:
        points = self._sampler.history
        if caller.admin:
            return points
        tenant = str(caller.tenant)
        return [
            replace(point, tenants={name: one for name, one in point.tenants.items() if name == tenant})
            for point in points
        ]

    def _status(self, now: Snapshot, tenant: str) -> bytes:
        if self._last is not now:
            self._last, self._written = now, {}
        if tenant not in self._written:
            seen = for_tenant(now, tenant) if tenant else now
            self._written[tenant] = _event("status", encoded(for_events(seen)))
        return self._written[tenant]


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
