"""One request (one sequence), from admission to its last token, whatever happens on the way.

    admit -> prefill leg -> first token to the user -> decode leg -> done

When the KV is pushed, the decode leg is open before the prefill leg, and waits.

Kept here: the request is placed again when a worker fails or stalls, as long as that is invisible to
the user: it goes on from prompt + tokens so far, or runs again and is not shown what the user has
(legs.py), and the retry budget bounds how many do. A leg that ends badly aborts (Leg.close); a lease
that decode did not use is given back; the router hears Done once for each placement; one outcome is
counted. Nothing in a clean-up waits, so a cancelled run is gone at once.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from llmserve.apiserver.attempts import Attempts, Way
from llmserve.apiserver.early_leg import EarlyLeg
from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.apiserver.handover_mode import HandoverMode, HandoverRule
from llmserve.apiserver.identity import KvIdentity
from llmserve.apiserver.legs import LegContext, Legs
from llmserve.apiserver.replay import Replay
from llmserve.apiserver.retry_budget import RetryBudget
from llmserve.apiserver.router_link import AdmissionRefused, RouterLink
from llmserve.apiserver.run_spans import RunSpans
from llmserve.apiserver.run_stats import RunStats
from llmserve.apiserver.stages import StageLimits, Timely
from llmserve.apiserver.worker_links import WorkerLinks
from llmserve.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    LLMServeError,
    RouterUnavailable,
    TransferError,
    Unavailable,
    WorkerStalled,
)
from llmserve.core.ids import RequestId, TenantId, TransferId, WorkerId
from llmserve.core.logs import RequestNames, name_request
from llmserve.core.outcome import FinishReason, Outcome
from llmserve.core.request import EngineOutput, EngineRequest, PrefillStats
from llmserve.engines.handover import PushCard, prefill_params
from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo
from llmserve.tracing.base import NO_SPAN, Span, Tracer

_log = logging.getLogger(__name__)

_PROGRESS_TOKENS = 256


class Sink(Protocol):
    """Where a run puts what it gets: the user's side of the request."""

    def push(self, output: EngineOutput) -> bool:
        """True: the request is over for the user (it finished, or a stop string matched)."""

    def fail(self, error: LLMServeError) -> None: ...


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all runs of an apiserver share."""

    router: RouterLink
    handover: HandoverRule
    workers: WorkerLinks
    identity: KvIdentity
    metrics: ApiserverMetrics
    model: str
    limits: StageLimits
    retries: RetryBudget
    tracer: Tracer


@dataclass(frozen=True, slots=True)
class RequestCard:
    """Who asks. client_salt: the cache_salt field of the client's request. record: what is remembered. span:
    of HTTP."""

    request_id: RequestId
    tenant: TenantId
    client_salt: str = ""
    record: SequenceRecord = field(default_factory=SequenceRecord)
    span: Span = NO_SPAN


class _WorkerFailed(Exception):
    def __init__(self, worker: WorkerInfo, error: LLMServeError) -> None:
        super().__init__(error.message)
        self.worker, self.error = worker, error


@dataclass(slots=True)
class _Prefilled:
    """ticket: of the lease on the KV, if one was granted. fetched: decode has drawn a token, so it has
    read the KV and released the lease itself. prologue: what the user is still to see of the
    prefill, on decode's first output."""

    over: bool = False
    ticket: Mapping[str, Any] | None = None
    fetched: bool = False
    prologue: EngineOutput | None = None


class RequestRun:
    def __init__(self, card: RequestCard, legs: Legs, sink: Sink, context: RunContext) -> None:
        self._card, self._legs, self._sink, self._context = card, legs, sink, context
        self._sent: list[int] = []
        self._generated = 0  # in this attempt, what the user had already included
        self._attempts = Attempts(legs, self._sent, context.retries, context.metrics)
        self._prefilled: PrefillStats | None = None  # as the engine of this placement told
        self._replay: Replay | None = None  # in this attempt
        self._heard = False  # a token, in this attempt
        self._stats = RunStats(context.metrics, card.record)
        self._spans = RunSpans(context.tracer, card.span)

    @property
    def _name(self) -> str:
        return self._card.request_id

    async def run(self) -> None:
        """Ends when the request has. Cancel it when the client is gone."""
        outcome = Outcome.CANCELLED
        name_request(RequestNames(self._name, self._card.span.trace_id))
        self._stats.started()
        self._context.retries.started()
        try:
            outcome = await self._to_its_end()
        finally:
            self._done(outcome)
            self._stats.ended(outcome, len(self._sent))
            _log.info("request %s %s: tenant=%s %s", self._name, outcome, self._card.tenant, self._stats)

    async def _to_its_end(self) -> Outcome:
        try:
            async with asyncio.timeout(self._context.limits.request):
                await self._serve()
        except TimeoutError:
            seconds = self._context.limits.request
            return self._failed(DeadlineExceeded(f"the request took longer than {seconds:g} s"))
        except AdmissionRefused as refused:
            return self._failed(refused.error, refused.outcome)
        except LLMServeError as error:
            return self._failed(error)
        except Exception:
            _log.exception("request %s failed on a defect", self._name)
            return self._failed(LLMServeError("internal error"))
        return Outcome.COMPLETED

    def _failed(self, error: LLMServeError, outcome: Outcome = Outcome.FAILED) -> Outcome:
        _log.warning("request %s failed: %s", self._name, error.message)
        self._card.record.error = error.message
        self._sink.fail(error)
        return Outcome.FAILED if self._sent else outcome

    async def _serve(self) -> None:
        excluded: list[str] = []
        while True:
            self._heard, self._generated = False, 0
            placement = await self._admit(excluded)
            try:
                return await self._run_on(placement)
            except _WorkerFailed as failure:
                self._report(failure)
                if why := self._attempts.over_because(failure.error):
                    raise _with(failure.error, why) from failure
                self._done(Outcome.FAILED)
                self._replay = Replay(self._sent) if self._attempts.again() is Way.REPLAYED else None
                excluded.append(failure.worker.worker_id)

    def _done(self, outcome: Outcome) -> None:
        """With this placement."""
        self._context.router.done(self._name, outcome, self._generated, self._prefilled)
        self._prefilled = None

    def _report(self, failure: _WorkerFailed) -> None:
        _log.warning("request %s: %s", self._name, failure)
        self._card.record.worker_failed(failure.worker.worker_id, failure.error.message)
        self._context.metrics.worker_failures_total.labels(type(failure.error).__name__).inc()
        if isinstance(failure.error, Unavailable | WorkerStalled):  # the worker, not only this request
            stalled = isinstance(failure.error, WorkerStalled)
            self._context.router.worker_failed(failure.worker, failure.error.message, stalled=stalled)

    @property
    def _as_prompt(self) -> Sequence[int]:
        """The tokens so far that this attempt goes on from."""
        return () if self._replay else self._sent

    async def _admit(self, excluded: Sequence[str]) -> router_pb2.Placement:
        card, context = self._card, self._context
        shape = context.router.kv_shape
        prompt = [*self._legs.prompt, *self._as_prompt] if self._as_prompt else self._legs.prompt
        card.record.asked()
        admit = router_pb2.Admit(
            request_id=card.request_id,
            tenant=card.tenant,
            model=context.model,
            prompt_tokens=len(prompt),
            max_output_tokens=self._legs.remaining_tokens(self._as_prompt),
            block_hashes=context.identity.block_hashes(prompt, shape, card.tenant, card.client_salt),
            block_tokens=shape.block_size_tokens,
            priority=self._legs.priority,
            excluded_workers=excluded,
        )
        return await self._placed(admit)

    async def _placed(self, admit: router_pb2.Admit) -> router_pb2.Placement:
        seconds = self._context.limits.admission
        try:
            with self._spans.admit(admit):
                async with asyncio.timeout(seconds):
                    return await self._context.router.admit(admit, self._card.record.placed)
        except TimeoutError as error:
            raise RouterUnavailable(f"the router gave no place within {seconds:g} s") from error

    async def _run_on(self, placement: router_pb2.Placement) -> None:
        if not placement.HasField("prefill"):
            request = self._legs.whole(self._leg_context(placement.decode))
            async with self._leg(placement.decode, request) as outputs:
                await self._show(outputs, "aggregated")
            return
        prefilled = _Prefilled()
        mode = self._mode(placement)
        self._context.metrics.handovers_total.labels(mode).inc()
        try:
            if mode is HandoverMode.PUSH:
                await self._pushed(placement, prefilled)
            else:
                await self._pulled(placement, prefilled)
        finally:
            if prefilled.ticket is not None and not prefilled.fetched:
                traceparent = self._card.span.traceparent
                self._context.workers.release(placement.prefill, prefilled.ticket, traceparent)

    def _mode(self, placement: router_pb2.Placement) -> HandoverMode:
        if self._legs.remaining_tokens(self._as_prompt) == 1:
            return HandoverMode.PULL  # of nothing: prefill draws the last token
        tokens = len(self._legs.prompt) + len(self._as_prompt)
        return self._context.handover.choose(tokens, placement.prefill, placement.decode)

    async def _pulled(self, placement: router_pb2.Placement, prefilled: _Prefilled) -> None:
        await self._prefill(placement.prefill, self._legs.prefill, prefilled)
        if not prefilled.over:
            request = self._legs.decode(self._leg_context(placement.decode), prefilled.ticket)
            async with self._leg(placement.decode, request) as outputs:
                await self._show(outputs, "decode", prefilled)

    async def _pushed(self, placement: router_pb2.Placement, prefilled: _Prefilled) -> None:
        """Decode waits with its blocks reserved while prefill computes and writes into them."""
        prefill = placement.prefill
        transfer_id = TransferId(self._leg_context(prefill).request_id)
        card = PushCard(
            transfer_id=transfer_id,
            worker_id=WorkerId(prefill.worker_id),
            epoch=prefill.epoch,
            endpoints=tuple(prefill.handover_endpoints),
            num_tokens=len(self._legs.prompt) + len(self._as_prompt),
            continues=self._legs.exact,
        )
        request = self._legs.decode_ahead(self._leg_context(placement.decode), card.to_params())
        async with self._leg(placement.decode, request, waits=True) as outputs, EarlyLeg(outputs) as early:
            push = partial(self._legs.prefill, handover=prefill_params(transfer_id))
            await early.after(self._prefill(prefill, push, prefilled))
            if not prefilled.over:
                await self._show(self._continued(early, prefill), "decode", prefilled)

    async def _continued(
        self, outputs: AsyncIterable[EngineOutput], prefill: WorkerInfo
    ) -> AsyncIterator[EngineOutput]:
        """Errors: _WorkerFailed when decode has not learnt the token that the user has: it would draw it
        again. Only a prefill worker that died between showing and telling it does that."""
        known = len(self._legs.prompt) + len(self._as_prompt)
        async for output in outputs:
            stats = output.prefill_stats
            if stats is not None and stats.prompt_tokens != known:
                raise _WorkerFailed(prefill, TransferError("decode was not told the first token"))
            yield output

    async def _prefill(
        self, worker: WorkerInfo, leg: Callable[[LegContext], EngineRequest], result: _Prefilled
    ) -> None:
        """Draws one token. Shows it when it is the last or exact; its KV is leased when decode follows."""
        request = leg(self._leg_context(worker))
        decode_follows = request.kv_transfer_params is not None
        shown = self._legs.exact or not decode_follows
        async with self._leg(worker, request) as outputs:
            async for output in outputs:
                result.ticket = output.kv_transfer_params or result.ticket
                output = replace(output, kv_transfer_params=None)
                if decode_follows and output.finish_reason is FinishReason.LENGTH:
                    output = replace(output, finish_reason=None)
                if not shown:
                    result.prologue = _without_tokens(output, result.prologue)
                elif self._push(output, "prefill"):
                    result.over = True
                    return

    async def _show(
        self, outputs: AsyncIterable[EngineOutput], origin: str, prefilled: _Prefilled | None = None
    ) -> None:
        prologue = prefilled.prologue if prefilled else None
        async for output in outputs:
            if prefilled is not None and output.token_ids:
                prefilled.fetched = True
            if prologue is not None:
                output = replace(
                    output,
                    prompt_logprobs=prologue.prompt_logprobs,
                    prefill_stats=prologue.prefill_stats,
                )
                prologue = None
            if self._push(output, origin):
                return

    @contextlib.asynccontextmanager
    async def _leg(
        self, worker: WorkerInfo, request: EngineRequest, *, waits: bool = False
    ) -> AsyncIterator[AsyncIterator[EngineOutput]]:
        """The outputs of one leg; on the way out it is aborted, unless it has ended. waits: for another
        leg, before it begins itself."""
        limits = self._context.limits
        first_seconds = limits.first_token * (2 if waits else 1)
        try:
            with (
                self._spans.leg(worker, request) as sent,
                contextlib.closing(self._context.workers.open(worker, sent)) as leg,
            ):
                yield Timely(leg, worker.worker_id, first_seconds, limits.token)
        except InvalidRequest:
            raise  # another worker would say the same
        except LLMServeError as error:
            raise _WorkerFailed(worker, error) from error

    def _leg_context(self, worker: WorkerInfo) -> LegContext:
        card = self._card
        suffix = f"~{self._attempts.count}" if self._attempts.count > 1 else ""
        salt = self._context.identity.salt(worker.kv_shape, card.tenant, card.client_salt)
        return LegContext(RequestId(card.request_id + suffix), salt, card.tenant, self._as_prompt)

    def _push(self, output: EngineOutput, origin: str) -> bool:
        self._prefilled = self._prefilled or output.prefill_stats
        if output.token_ids and not self._heard:
            self._first_token(output, origin)
        if output.handover is not None:
            self._card.record.handovers.append(output.handover)
        self._count(len(output.token_ids))
        unseen = self._replay.unseen(output) if self._replay else output
        if unseen is None:
            return False
        self._sent.extend(unseen.token_ids)
        return self._sink.push(unseen)

    def _first_token(self, output: EngineOutput, origin: str) -> None:
        """Of an attempt: prefill is over. Of the first: what the user waited for."""
        self._heard = True
        self._context.router.first_token(self._name)
        if not self._sent:
            stats = output.prefill_stats or PrefillStats()
            self._stats.first_token(origin, len(self._legs.prompt), stats)

    def _count(self, tokens: int) -> None:
        """Tells the router of every so many tokens: a long answer holds more than was expected."""
        before, self._generated = self._generated, self._generated + tokens
        if self._generated // _PROGRESS_TOKENS > before // _PROGRESS_TOKENS:
            self._context.router.progress(self._name, self._generated)


def _with(error: LLMServeError, why: str) -> LLMServeError:
    message = f"{error.message}; {why}"
    return type(error)(message, retry_after_seconds=error.retry_after_seconds)


def _without_tokens(output: EngineOutput, before: EngineOutput | None) -> EngineOutput:
    """What is kept of a prefill whose token is drawn again: the prompt's logprobs and cache counts."""
    before = before or EngineOutput(output.request_id)
    return replace(
        before,
        prompt_logprobs=output.prompt_logprobs or before.prompt_logprobs,
        prefill_stats=output.prefill_stats or before.prefill_stats,
    )
