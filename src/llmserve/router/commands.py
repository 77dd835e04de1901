"""What operators ask of the router, and what the router asks of its apiservers for them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace

from llmserve.config.changes import Changes, compare
from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.core.clock import Clock
from llmserve.core.errors import InvalidRequest, NotFound, Unavailable
from llmserve.core.ids import ApiserverId, WorkerId
from llmserve.router.codec import decode_order, encode_budgets, encode_index, encode_status, encode_tenants
from llmserve.router.controller import Controller
from llmserve.router.event_loop import EventLoop
from llmserve.router.kv_watch import KvWatch
from llmserve.router.leader.election import LeaderCheck
from llmserve.router.settings import RouterSettings
from llmserve.router.streams import Broadcast, BroadcastResult, Send
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import Reloaded, encode_reloaded
from llmserve.rpc.role import set_log_level

_log = logging.getLogger(__name__)


class RouterLiveSettings:
    """The settings that the router has now."""

    def __init__(self, controller: Controller, event_loop: EventLoop, settings: RouterSettings) -> None:
        self.settings = settings
        self._controller, self._event_loop = controller, event_loop

    def apply(self, manifest: Manifest, changes: Changes) -> None:
        """Applies everything but the times of terms, which need a restart. Errors: NotLeader."""
        terms, level = self.settings.terms, self.settings.log_level
        if any(change.path == "observability.log_level" for change in changes.live):
            level = manifest.observability.log_level
        settings = replace(RouterSettings.of(manifest), terms=terms, log_level=level)
        with self._event_loop.deciding() as effects:
            effects += self._controller.reconfigure(settings)
        if level != self.settings.log_level:
            set_log_level(level)
        self.settings = settings


Ask = Callable[[router_pb2.Question], Awaitable[BroadcastResult]]
Apply = Callable[[Manifest, Changes], None]


class ManifestReload:
    """A changed manifest takes the place of the one that the cluster runs with.

    The router first asks every apiserver whether it could apply the manifest, and applies it only if none
    objects. So a manifest that is wrong, or that names a key which an apiserver does not have, changes
    nothing. ask: asks all apiservers. apply: changes the router itself."""

    def __init__(self, manifest: Manifest, ask: Ask, apply: Apply) -> None:
        self._started = self._last = manifest
        self._ask, self._apply = ask, apply
        self._one_at_a_time = asyncio.Lock()
        self._text = self._file = ""  # of the last reload, if there was one

    async def reload(self, text: str, file: str, *, only_check: bool = False) -> Reloaded:
        """only_check: returns what would change, and changes nothing. Errors: ManifestError with path and
        line; InvalidRequest or Unavailable when an apiserver cannot apply the manifest, or does not answer.
        Nothing changes then."""
        manifest = parse_manifest(text, file)
        async with self._one_at_a_time:
            _raise_objection(await self._ask(_question(text, file, only_check=True)))
            changes = compare(self._started, self._last, manifest)
            if only_check:
                return Reloaded(changes)
            self._last, self._text, self._file = manifest, text, file
            self._apply(manifest, changes)
            outcome = await self._ask(_question(text, file, only_check=False))
        reloaded = Reloaded(changes, tuple(_failures(outcome)))
        _log.info("reloaded %s: %s", file, "; ".join(reloaded.lines()))
        return reloaded

    def pending(self) -> router_pb2.Question | None:
        """Returns the question for an apiserver that joins now, and may have missed the last reload."""
        return _question(self._text, self._file, only_check=False) if self._text else None


def _question(text: str, file: str, *, only_check: bool) -> router_pb2.Question:
    return router_pb2.Question(
        manifest=router_pb2.ManifestQuestion(text=text, file=file, only_check=only_check)
    )


def _raise_objection(outcome: BroadcastResult) -> None:
    for name, answer in outcome.answers.items():
        if answer.error:
            raise InvalidRequest(f"{name} cannot obey the manifest, nothing was changed: {answer.message}")
    if outcome.silent:
        names = ", ".join(sorted(outcome.silent))
        raise Unavailable(f"no answer from {names}: nothing was changed")


def _failures(outcome: BroadcastResult) -> Iterator[str]:
    for name, answer in outcome.answers.items():
        if answer.error:
            yield f"{name}: {answer.message}"
    for name in sorted(outcome.silent):
        yield f"{name}: no answer"


class OperatorCommands:
    """Every command but `status` raises NotLeader on a standby: it knows no worker and no apiserver.

    apiservers: those that have a session now. manifest: what a reload is compared with; None: the router runs
    without one, and cannot reload."""

    def __init__(
        self,
        controller: Controller,
        clock: Clock,
        kv_watch: KvWatch,
        leader_check: LeaderCheck,
        live: RouterLiveSettings,
        apiservers: Callable[[], Mapping[ApiserverId, Send]],
        manifest: Manifest | None,
    ) -> None:
        self._controller, self._clock, self._kv_watch = controller, clock, kv_watch
        self._leader_check, self._live, self._apiservers = leader_check, live, apiservers
        self._broadcast = Broadcast()
        self._reload = ManifestReload(manifest, self._ask, live.apply) if manifest else None

    # -- commands

    def drain(self, request: router_pb2.DrainRequest) -> router_pb2.DrainResponse:
        """Errors: NotFound."""
        self._leader_check.check()
        order = decode_order(request.order, self._live.settings.drain_timeout_seconds)
        member, others = self._controller.drain(WorkerId(request.worker_id), order)
        _log.info("worker %s: %s", request.worker_id, order)
        return router_pb2.DrainResponse(
            running_requests=member.slots.placed_requests,
            others=others,
            timeout_seconds=order.timeout_seconds,
        )

    def status(self) -> router_pb2.GetClusterStatusResponse:
        now, speeds = self._clock.now(), self._controller.speeds
        slow, measured = speeds.slow_reasons(), speeds.measured()
        leader, stats = self._leader_check.status(), self._controller.scheduler_stats()
        return router_pb2.GetClusterStatusResponse(
            workers=[encode_status(member, now, slow, measured) for member in self._controller.membership],
            queued_requests=self._controller.waiting_requests,
            running_requests=self._controller.running_requests,
            apiservers=self._controller.apiservers,
            prefix_index=encode_index(self._controller.prefixes, self._kv_watch.away(), now),
            leads=leader.leads,
            leader=leader.leader,
            epoch=leader.epoch,
            state_trouble=leader.error,
            tenants=encode_tenants(stats),
            budgets=encode_budgets(stats),
            queue_limit_requests=stats.queue_limit_requests,
        )

    async def reload(self, request: router_pb2.ReloadRequest) -> router_pb2.ReloadResponse:
        """Errors: as ManifestReload.reload; InvalidRequest without a manifest."""
        self._leader_check.check()
        if self._reload is None:
            raise InvalidRequest("this router runs without a manifest: there is nothing to reload")
        reloaded = await self._reload.reload(request.text, request.file, only_check=request.only_check)
        return encode_reloaded(reloaded)

    async def explain(self, request: router_pb2.ExplainRequest) -> router_pb2.ExplainResponse:
        """Errors: NotFound."""
        self._leader_check.check()
        result = await self._ask(router_pb2.Question(record=request.record))
        for answer in result.answers.values():
            if answer.record:
                return router_pb2.ExplainResponse(record=answer.record)
        raise NotFound(f"no apiserver remembers a request {request.record.request_id}")

    async def list_requests(self, request: router_pb2.ListRequestsRequest) -> router_pb2.ListRequestsResponse:
        self._leader_check.check()
        others = {name: send for name, send in self._apiservers().items() if name != request.asker}
        result = await self._broadcast.ask(others, router_pb2.Question(rows=request.rows))
        answers = [answer.record for answer in result.answers.values() if not answer.error]
        refused = {name for name, answer in result.answers.items() if answer.error}
        return router_pb2.ListRequestsResponse(answers=answers, silent=sorted(result.silent | refused))

    # -- apiservers

    async def until_heard(self) -> None:
        """Returns when all apiservers have what was sent to them before. It does not wait long for one
        that is silent."""
        silent = (await self._ask(router_pb2.Question(echo=router_pb2.Echo()))).silent
        if silent:
            _log.warning("no answer from %s: it may not know yet what has changed", ", ".join(sorted(silent)))

    def joined(self, send: Send) -> None:
        """An apiserver has a session from now on. It learns of the last reload, which it may have missed."""
        if self._reload is not None and (pending := self._reload.pending()) is not None:
            send(router_pb2.RouterSessionResponse(question=pending))

    def answered(self, apiserver_id: ApiserverId, answer: router_pb2.Answer) -> None:
        self._broadcast.answered(apiserver_id, answer)

    def left(self, apiserver_id: ApiserverId) -> None:
        self._broadcast.left(apiserver_id)

    async def _ask(self, question: router_pb2.Question) -> BroadcastResult:
        return await self._broadcast.ask(self._apiservers(), question)
