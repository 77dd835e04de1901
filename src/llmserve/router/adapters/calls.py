"""Answers the calls by which operators load, unload, keep and list adapters."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import chain

from llmserve.config.adapter_source import is_below, parse_adapter_source
from llmserve.core.adapters import AdapterState, AdapterTier
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import WorkerId
from llmserve.router.adapters.book import AdapterBook
from llmserve.router.adapters.registration import AdapterWish, Registration
from llmserve.router.commands import RouterLiveSettings
from llmserve.router.event_loop import EventLoop
from llmserve.router.leader.election import LeaderCheck
from llmserve.rpc.adapters import decode_tier, encode_adapter_report, encode_named
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.status import error_named


class AdapterCalls:
    """Each call raises NotLeader on a standby, and when the term ends while it waits. The same call
    to the next leader joins the work that was begun. until_heard: returns when all apiservers have the names
    that were sent to them before, so that requests by any of them follow a call that was answered."""

    def __init__(
        self,
        book: AdapterBook,
        event_loop: EventLoop,
        leader_check: LeaderCheck,
        live: RouterLiveSettings,
        until_heard: Callable[[], Awaitable[None]],
    ) -> None:
        self._book, self._event_loop = book, event_loop
        self._leader_check, self._live, self._until_heard = leader_check, live, until_heard

    async def load(self, request: router_pb2.LoadAdapterRequest) -> router_pb2.LoadAdapterResponse:
        """Errors: as AdapterBook.load; InvalidRequest for a source that is wrong or not allowed; those
        that a worker has reported of the adapter."""
        tier = decode_tier(request.prefetch, AdapterTier.DISK)
        source = await asyncio.to_thread(self._source, request.model, request.source)
        wish = AdapterWish(request.name, source, tier, request.pin, request.implicit)
        with self._event_loop.deciding():
            registration = self._book.load(request.model, wish)
        await self._event_loop.adapter_watch.calls.until(lambda: not registration.pending)
        if registration.error:
            raise error_named(registration.error, registration.message)
        await self._until_heard()
        return router_pb2.LoadAdapterResponse(adapter=self._status(registration))

    async def unload(self, request: router_pb2.UnloadAdapterRequest) -> router_pb2.UnloadAdapterResponse:
        """Errors: NotFound."""
        with self._event_loop.deciding():
            registration = self._book.unload(request.model, request.name)
        await self._until_heard()
        if request.wait:
            await self._event_loop.adapter_watch.calls.until(lambda: registration.state is AdapterState.GONE)
        return router_pb2.UnloadAdapterResponse(adapter=self._status(registration))

    async def keep(self, request: router_pb2.KeepAdapterRequest) -> router_pb2.KeepAdapterResponse:
        """Errors: NotFound, also when it is unloaded while the call waits."""
        with self._event_loop.deciding():
            registration = self._book.find(request.model, request.name)
            tier = decode_tier(request.tier, None)
            pinned = request.pin if request.HasField("pin") else None
            self._book.keep(registration, tier, pinned=pinned)
        if request.wait:
            await self._event_loop.adapter_watch.calls.until(lambda: self._is_kept(registration))
            if registration.state is not AdapterState.READY:
                raise NotFound(f"adapter {request.name} is {registration.state}: {registration.message}")
        return router_pb2.KeepAdapterResponse(adapter=self._status(registration))

    def list(self, request: router_pb2.ListAdaptersRequest) -> router_pb2.ListAdaptersResponse:
        """Returns all that are not gone. model: its name; empty: of all models."""
        self._leader_check.check()
        found = (one for one in self._book if request.model in ("", one.model))
        return router_pb2.ListAdaptersResponse(adapters=map(self._status, found))

    # -- parts

    def _source(self, model: str, text: str) -> str:
        """Returns the source as the book has it. model: empty: the only one. Reads the file
        system. Errors: InvalidRequest."""
        source, settings = parse_adapter_source(text), self._live.settings
        of_model = (one.wishes for one in settings.adapters if model in ("", one.model))
        declared = (wish.source for wish in chain.from_iterable(of_model))
        if str(source) not in declared and not is_below(source, settings.allowed_sources):
            roots = " or ".join(settings.allowed_sources) or "none yet"
            message = f"adapter source {source} is not below one of `lora.allowed_sources`: {roots}"
            raise InvalidRequest(message, field="source")
        return str(source)

    def _why_not_yet(self, registration: Registration) -> str:
        if registration.pending and not self._book.lifecycle.members(registration.model):
            return f"no worker of model {registration.model} that runs adapters is registered"
        far = self._too_far(registration) if registration.pending else {}
        reasons = far | {name: pause.message for name, pause in registration.pauses.items()}
        return "; ".join(f"worker {name}: {reason}" for name, reason in reasons.items())

    def _too_far(self, registration: Registration) -> dict[WorkerId, str]:
        """Returns where it is on the workers that have it, but not as near as it is wanted."""
        members, wanted = self._book.lifecycle.members(registration.model), registration.wish.wanted
        waiting = [one for one in members if not registration.confirmed_by(one)]
        return {
            member.spec.worker_id: f"it is in tier {report.tier}, and wanted in tier {wanted}"
            for member in waiting
            if (report := registration.report_of(member)) and report.digest
        }

    def _is_kept(self, registration: Registration) -> bool:
        if registration.pending:
            return False
        members = self._book.lifecycle.members(registration.model)
        is_near = bool(members) and all(map(registration.near_enough, members))
        return is_near or registration.state is not AdapterState.READY

    def _status(self, registration: Registration) -> router_pb2.AdapterStatus:
        members = self._book.lifecycle.members(registration.model)
        pairs = ((member.spec.worker_id, registration.report_of(member)) for member in members)
        return router_pb2.AdapterStatus(
            adapter=encode_named(registration.named()),
            state=registration.state,
            error=registration.message or self._why_not_yet(registration),
            pinned=registration.wish.pinned,
            running_requests=self._book.users(registration.digest) if registration.digest else 0,
            places=[
                router_pb2.AdapterPlace(worker_id=worker_id, report=encode_adapter_report(report))
                for worker_id, report in pairs
                if report is not None
            ],
        )
