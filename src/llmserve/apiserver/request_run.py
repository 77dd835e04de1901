"""One request (one sequence), from admission to its last token, whatever happens on the way.

    admit -> prefill leg -> first token to the user -> decode leg -> done

When the KV is pushed, the decode leg is open before the prefill leg, and waits.

Kept here: the request is placed again when a worker fails, as long as that is invisible to the
user; a leg that ends badly aborts (Leg.close); a lease that decode did not use is given back; the
router hears Done once for each placement; one outcome is counted. Nothing in a clean-up waits, so a
cancelled run is gone at once.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from llmserve.apiserver.early_leg import EarlyLeg
from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.apiserver.handover_mode import HandoverMode, HandoverRule
from llmserve.apiserver.identity import KvIdentity
from llmserve.apiserver.legs import LegContext, Legs
from llmserve.apiserver.router_link import AdmissionRefused, RouterLink
from llmserve.apiserver.run_stats import RunStats
from llmserve.apiserver.worker_links import WorkerLinks
from llmserve.core.errors import DeadlineExceeded, InvalidRequest, LLMServeError, TransferError, Unavailable
from llmserve.core.ids import RequestId, TenantId, TransferId, WorkerId
from llmserve.core.outcome import FinishReason, Outcome
from llmserve.core.request import EngineOutput, EngineRequest, PrefillStats
from llmserve.engines.handover import PushCard, prefill_params
from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo

_log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 3
_PROGRESS_TOKENS = 256


class Sink(Protocol):
    """Where a run puts what it gets: the user's side of the request."""

    def push(self, output: EngineOutput) -> bool:
        """True: the request is over for the user (it finished, or a stop string matched)."""

    def fail(self, error: LLMServeError) -> None: ...


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all runs of an apiserver share. timeout_seconds: for one request, all in all."""

    router: RouterLink
    handover: HandoverRule
    workers: WorkerLinks
    identity: KvIdentity
    metrics: ApiserverMetrics
    model: str
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class RequestCard:
    """Who asks. client_salt: the cache_salt field of the client's request. record: what is remembered."""

    request_id: RequestId
    tenant: TenantId
    client_salt: str = ""
    record: SequenceRecord = field(default_factory=SequenceRecord)


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
        self._sent_before = 0  # by the attempts before this one; now prompt
        self._attempt = 0
        self._stats = RunStats(context.metrics, card.record)

    @property
    def _name(self) -> str:
        return self._card.request_id

    async def run(self) -> None:
        """Ends when the request has. Cancel it when the client is gone."""
        outcome = Outcome.CANCELLED
        self._stats.started()
        try:
            outcome = await self._to_its_end()
        finally:
            self._context.router.done(self._name, outcome, len(self._sent) - self._sent_before)
            self._stats.ended(outcome, len(self._sent))
            _log.info("request %s %s: tenant=%s %s", self._name, outcome, self._card.tenant, self._stats)

    async def _to_its_end(self) -> Outcome:
        try:
            async with asyncio.timeout(self._context.timeout_seconds):
                await self._serve()
        except TimeoutError:
            seconds = self._context.timeout_seconds
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
            self._attempt += 1
            placement = await self._admit(excluded)
            try:
                return await self._run_on(placement)
            except _WorkerFailed as failure:
                self._report(failure)
                if not self._may_go_on():
                    raise failure.error from failure
                self._context.router.done(self._name, Outcome.FAILED, len(self._sent) - self._sent_before)
                self._sent_before = len(self._sent)
                excluded.append(failure.worker.worker_id)

    def _report(self, failure: _WorkerFailed) -> None:
        _log.warning("request %s: %s", self._name, failure)
        self._card.record.worker_failed(failure.worker.worker_id, failure.error.message)
        self._context.metrics.worker_failures_total.labels(type(failure.error).__name__).inc()
        if isinstance(failure.error, Unavailable):  # the worker, not only this request
            self._context.router.worker_failed(failure.worker, failure.error.message)

    def _may_go_on(self) -> bool:
        """Only when the user cannot tell: nothing was sent, or what was sent can become prompt."""
        return self._attempt < _MAX_ATTEMPTS and (not self._sent or self._legs.exact)

    async def _admit(self, excluded: Sequence[str]) -> router_pb2.Placement:
        card, context = self._card, self._context
        shape = context.router.kv_shape
        prompt = [*self._legs.prompt, *self._sent] if self._sent else self._legs.prompt
        card.record.asked()
        return await context.router.admit(
            router_pb2.Admit(
                request_id=card.request_id,
                tenant=card.tenant,
                model=context.model,
                prompt_tokens=len(prompt),
                max_output_tokens=self._legs.remaining_tokens(self._sent),
                block_hashes=context.identity.block_hashes(prompt, shape, card.tenant, card.client_salt),
                priority=self._legs.priority,
                excluded_workers=excluded,
            ),
            card.record.placed,
        )

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
                self._context.workers.release(placement.prefill, prefilled.ticket)

    def _mode(self, placement: router_pb2.Placement) -> HandoverMode:
        if self._legs.remaining_tokens(self._sent) == 1:
            return HandoverMode.PULL  # of nothing: prefill draws the last token
        tokens = len(self._legs.prompt) + len(self._sent)
        return self._context.handover.choose(tokens, placement.prefill, placement.decode)

    async def _pulled(self, placement: router_pb2.Placement, prefilled: _Prefilled) -> None:
        await self._prefill(placement.prefill, self._legs.prefill, prefilled)
        if not prefilled.over:
            request = self._legs.decode(self._leg_context(placement.decode), prefilled.ticket)
            async with self._leg(placement.decode, request) as outputs:
                await self._decode(outputs, prefilled)

    async def _pushed(self, placement: router_pb2.Placement, prefilled: _Prefilled) -> None:
        """Decode waits with its blocks reserved while prefill computes and writes into them."""
        prefill = placement.prefill
        transfer_id = TransferId(self._leg_context(prefill).request_id)
        card = PushCard(
            transfer_id=transfer_id,
            worker_id=WorkerId(prefill.worker_id),
            epoch=prefill.epoch,
            endpoints=tuple(prefill.handover_endpoints),
            num_tokens=len(self._legs.prompt) + len(self._sent),
            continues=self._legs.exact,
        )
        request = self._legs.decode_ahead(self._leg_context(placement.decode), card.to_params())
        async with self._leg(placement.decode, request) as outputs, EarlyLeg(outputs) as early:
            push = partial(self._legs.prefill, handover=prefill_params(transfer_id))
            await early.after(self._prefill(prefill, push, prefilled))
            if not prefilled.over:
                await self._decode(self._continued(early, prefill), prefilled)

    async def _continued(
        self, outputs: AsyncIterable[EngineOutput], prefill: WorkerInfo
    ) -> AsyncIterator[EngineOutput]:
        """Errors: _WorkerFailed when decode has not learnt the token that the user has: it would draw it
        again. Only a prefill worker that died between showing and telling it does that."""
        known = len(self._legs.prompt) + len(self._sent)
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

    async def _decode(self, outputs: AsyncIterable[EngineOutput], prefilled: _Prefilled) -> None:
        before = len(self._sent)
        try:
            await self._show(outputs, "decode", prefilled.prologue)
        finally:
            prefilled.fetched = len(self._sent) > before

    async def _show(
        self, outputs: AsyncIterable[EngineOutput], origin: str, prologue: EngineOutput | None = None
    ) -> None:
        async for output in outputs:
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
        self, worker: WorkerInfo, request: EngineRequest
    ) -> AsyncIterator[AsyncIterator[EngineOutput]]:
        """The outputs of one leg; on the way out it is aborted, unless it has ended."""
        try:
            with contextlib.closing(self._context.workers.open(worker, request)) as leg:
                yield leg
        except InvalidRequest:
            raise  # another worker would say the same
        except LLMServeError as error:
            raise _WorkerFailed(worker, error) from error

    def _leg_context(self, worker: WorkerInfo) -> LegContext:
        card = self._card
        suffix = f"~{self._attempt}" if self._attempt > 1 else ""
        salt = self._context.identity.salt(worker.kv_shape, card.tenant, card.client_salt)
        return LegContext(RequestId(card.request_id + suffix), salt, card.tenant, self._sent)

    def _push(self, output: EngineOutput, origin: str) -> bool:
        if not self._sent and output.token_ids:
            self._context.router.first_token(self._name)
            stats = output.prefill_stats or PrefillStats()
            self._stats.first_token(origin, len(self._legs.prompt), stats)
        if output.handover is not None:
            self._card.record.handovers.append(output.handover)
        self._sent.extend(output.token_ids)
        self._report_progress(len(output.token_ids))
        return self._sink.push(output)

    def _report_progress(self, tokens: int) -> None:
        """Tells the router of every so many tokens: a long answer holds more than was expected."""
        generated = len(self._sent) - self._sent_before
        if generated // _PROGRESS_TOKENS > (generated - tokens) // _PROGRESS_TOKENS:
            self._context.router.progress(self._name, generated)


def _without_tokens(output: EngineOutput, before: EngineOutput | None) -> EngineOutput:
    """What is kept of a prefill whose token is drawn again: the prompt's logprobs and cache counts."""
    before = before or EngineOutput(output.request_id)
    return replace(
        before,
        prompt_logprobs=output.prompt_logprobs or before.prompt_logprobs,
        prefill_stats=output.prefill_stats or before.prefill_stats,
    )
