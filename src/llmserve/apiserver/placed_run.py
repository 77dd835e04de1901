"""One placement of a request: its legs on the workers that the router chose.

    prefill leg -> its first token -> decode leg          the KV is pulled
    decode leg opens, and waits; prefill leg; decode      the KV is pushed while prefill computes
    one leg                                               one worker does both

A leg that ends badly aborts (Leg.close); a lease that decode did not use is given back. Nothing in a
clean-up waits, so a cancelled run is gone at once.
"""

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llmserve.apiserver.early_leg import EarlyLeg
from llmserve.apiserver.handover_mode import HandoverMode
from llmserve.apiserver.legs import LegContext, Legs
from llmserve.apiserver.run_context import RequestCard, RunContext
from llmserve.apiserver.run_spans import RunSpans
from llmserve.apiserver.stages import Timely
from llmserve.apiserver.worker_failed import WorkerFailed
from llmserve.core.errors import InvalidRequest, LLMServeError, TransferError
from llmserve.core.ids import RequestId, TransferId, WorkerId
from llmserve.core.kv_params import PushParams, prefill_params
from llmserve.core.outcome import FinishReason
from llmserve.core.request import EngineOutput, EngineRequest
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo

# An output, and the leg it is from: "prefill", "decode" or "aggregated". True: the user needs no more.
Push = Callable[[EngineOutput, str], bool]


@dataclass(slots=True)
class _Prefilled:
    """ticket: of the lease on the KV, if one was granted. fetched: decode has drawn a token, so it has
    read the KV and released the lease itself. prologue: what the user is still to see of the
    prefill, on decode's first output."""

    over: bool = False
    ticket: Mapping[str, Any] | None = None
    fetched: bool = False
    prologue: EngineOutput | None = None


@dataclass(frozen=True, slots=True)
class Try:
    """number: from 1. as_prompt: the tokens so far that a leg goes on from; grows with what is shown."""

    number: int = 1
    as_prompt: Sequence[int] = ()


class PlacedRun:
    """run() once."""

    def __init__(
        self, card: RequestCard, legs: Legs, context: RunContext, spans: RunSpans, this: Try, push: Push
    ) -> None:
        self._card, self._legs, self._context, self._spans = card, legs, context, spans
        self._try, self._push = this, push

    async def run(self, placement: router_pb2.Placement) -> None:
        """Errors: WorkerFailed; InvalidRequest, when any worker would say so."""
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

    async def go_on(self, worker: WorkerInfo, prologue: EngineOutput | None) -> None:
        """One of several choices, on a worker that has the prompt's KV, or computes it for all of them: then
        there is no prologue. Errors: as of run."""
        context = self._leg_context(worker)
        known = prologue is not None
        request = self._legs.decode(context, None) if known else self._legs.whole(context)
        async with self._leg(worker, request) as outputs:
            await self._show(outputs, "decode" if known else "aggregated", _Prefilled(prologue=prologue))

    def _mode(self, placement: router_pb2.Placement) -> HandoverMode:
        if self._legs.remaining_tokens(self._try.as_prompt) == 1:
            return HandoverMode.PULL  # of nothing: prefill draws the last token
        return self._context.handover.choose(self._known_tokens, placement.prefill, placement.decode)

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
        card = PushParams(
            transfer_id=transfer_id,
            worker_id=WorkerId(prefill.worker_id),
            epoch=prefill.epoch,
            endpoints=tuple(prefill.handover_endpoints),
            num_tokens=self._known_tokens,
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
        """Errors: WorkerFailed when decode has not learnt the token that the user has: it would draw it
        again. Only a prefill worker that died between showing and telling it does that."""
        known = self._known_tokens
        async for output in outputs:
            stats = output.prefill_stats
            if stats is not None and stats.prompt_tokens != known:
                raise WorkerFailed(prefill, TransferError("decode was not told the first token"))
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
            raise WorkerFailed(worker, error) from error

    @property
    def _known_tokens(self) -> int:
        return len(self._legs.prompt) + len(self._try.as_prompt)

    def _leg_context(self, worker: WorkerInfo) -> LegContext:
        card = self._card
        suffix = f"~{self._try.number}" if self._try.number > 1 else ""
        salt = self._context.identity.salt(worker.kv_shape, card.tenant, card.client_salt)
        return LegContext(RequestId(card.request_id + suffix), salt, card.tenant, self._try.as_prompt)


def _without_tokens(output: EngineOutput, before: EngineOutput | None) -> EngineOutput:
    """What is kept of a prefill whose token is drawn again: the prompt's logprobs and cache counts."""
    before = before or EngineOutput(output.request_id)
    return replace(
        before,
        prompt_logprobs=output.prompt_logprobs or before.prompt_logprobs,
        prefill_stats=output.prefill_stats or before.prefill_stats,
    )
