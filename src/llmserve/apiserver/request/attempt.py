"""One placement of a request: its legs on the workers that the router chose.

    prefill leg -> its first token -> decode leg          the KV is pulled
    decode leg opens, and waits; prefill leg; decode      the KV is pushed while prefill computes
    one leg                                               one worker does both

A leg that ends badly aborts (LegStream.close); a lease that decode did not use is given back. Nothing in a
clean-up waits, so a cancelled run is gone at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

from llmserve.apiserver.request.context import LegContext, Legs, RequestInfo, RunContext, WorkerFailed
from llmserve.apiserver.request.observe import RunSpans
from llmserve.apiserver.request.rules import HandoverMode
from llmserve.core.errors import InvalidRequest, LLMServeError, TransferError, WorkerStalled
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
    read the KV and released the lease itself. prefill_output: what the user is still to see of the
    prefill, on decode's first output."""

    over: bool = False
    ticket: Mapping[str, Any] | None = None
    fetched: bool = False
    prefill_output: EngineOutput | None = None


@dataclass(frozen=True, slots=True)
class Try:
    """number: from 1. as_prompt: the tokens so far that a leg goes on from; grows with what is shown."""

    number: int = 1
    as_prompt: Sequence[int] = ()


class Attempt:
    """run() once."""

    def __init__(
        self, card: RequestInfo, legs: Legs, context: RunContext, spans: RunSpans, this: Try, push: Push
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

    async def go_on(self, worker: WorkerInfo, prefill_output: EngineOutput | None) -> None:
        """One of several choices, on a worker that has the prompt's KV, or computes it for all of them: then
        there is no prefill_output. Errors: as of run."""
        context = self._leg_context(worker)
        known = prefill_output is not None
        request = self._legs.decode(context, None) if known else self._legs.whole(context)
        async with self._leg(worker, request) as outputs:
            await self._show(
                outputs, "decode" if known else "aggregated", _Prefilled(prefill_output=prefill_output)
            )

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
        async with (
            self._leg(placement.decode, request, waits=True) as outputs,
            PrestartedLeg(outputs) as early,
        ):
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
                    result.prefill_output = _without_tokens(output, result.prefill_output)
                elif self._push(output, "prefill"):
                    result.over = True
                    return

    async def _show(
        self, outputs: AsyncIterable[EngineOutput], origin: str, prefilled: _Prefilled | None = None
    ) -> None:
        prefill_output = prefilled.prefill_output if prefilled else None
        async for output in outputs:
            if prefilled is not None and output.token_ids:
                prefilled.fetched = True
            if prefill_output is not None:
                output = replace(
                    output,
                    prompt_logprobs=prefill_output.prompt_logprobs,
                    prefill_stats=prefill_output.prefill_stats,
                )
                prefill_output = None
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
                yield WithDeadlines(leg, worker.worker_id, first_seconds, limits.token)
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


class PrestartedLeg:
    """Outputs of a leg that may fail, or begin, while something else is done first. Iterated once; the
    leg itself is its caller's to close."""

    def __init__(self, outputs: AsyncIterator[EngineOutput]) -> None:
        self._outputs = outputs

    async def __aenter__(self) -> "PrestartedLeg":
        self._first = asyncio.ensure_future(anext(self._outputs))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _ended(self._first)

    async def after(self, work: Coroutine[None, None, None]) -> None:
        """Does the work. When the leg fails meanwhile, cancels the work and raises the leg's error."""
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait((self._first, working), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self._first.result()
            await working
        finally:
            await _ended(working)

    async def __aiter__(self) -> AsyncIterator[EngineOutput]:
        yield await self._first
        async for output in self._outputs:
            yield output


async def _ended(task: asyncio.Future[EngineOutput] | asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class WithDeadlines:
    """The outputs of a leg on this worker, each within its time: the first, and those after it."""

    def __init__(
        self, outputs: AsyncIterator[EngineOutput], worker_id: str, first_seconds: float, next_seconds: float
    ) -> None:
        self._outputs, self._worker_id = outputs, worker_id
        self._limit, self._next_seconds = first_seconds, next_seconds

    def __aiter__(self) -> "WithDeadlines":
        return self

    async def __anext__(self) -> EngineOutput:
        """Errors: WorkerStalled; those of the leg."""
        try:
            async with asyncio.timeout(self._limit):
                output = await anext(self._outputs)
        except TimeoutError as error:
            seconds = f"{self._limit:g} s"
            raise WorkerStalled(f"the worker {self._worker_id} gave no output within {seconds}") from error
        self._limit = self._next_seconds
        return output
