"""One placement of a request: its legs on the workers that the router chose.

    prefill leg -> its first token -> decode leg          decode pulls the KV
    decode leg opens, and waits; prefill leg; decode      prefill pushes the KV while it computes
    one leg                                               one worker does both

A leg that ends badly aborts (LegStream.close), and a lease that decode did not use is given back. No clean-up
waits, so a cancelled attempt ends at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec.structs import replace

from llmserve.apiserver.links.worker import LegStream
from llmserve.apiserver.request.context import LegContext, Legs, RequestInfo, RunContext, WorkerFailed
from llmserve.apiserver.request.observe import RunSpans
from llmserve.core.errors import InvalidRequest, LLMServeError, TransferError
from llmserve.core.ids import RequestId, TransferId, WorkerId
from llmserve.core.kv_params import HandoverMode, PushParams, prefill_params
from llmserve.core.request import EngineOutput, EngineRequest, FinishReason
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo

# Takes an output, and the leg that it comes from: "prefill", "decode" or "aggregated". Returns whether the
# user needs no more.
Push = Callable[[EngineOutput, str], bool]


@dataclass(slots=True)
class _Prefilled:
    """What prefill has left. pull_params: name the lease on the KV, if one was granted. fetched: decode has
    drawn a token, so it has read the KV and released the lease itself. prefill_output: what the user is still
    to see of the prefill, on decode's first output."""

    over: bool = False
    pull_params: Mapping[str, Any] | None = None
    fetched: bool = False
    prefill_output: EngineOutput | None = None


class Attempt:
    """number: from 1. resumed: the tokens so far that its legs go on from; it grows with what is shown.

    Exactly one of `run` and `run_on` is called, once."""

    def __init__(
        self,
        info: RequestInfo,
        legs: Legs,
        context: RunContext,
        spans: RunSpans,
        push: Push,
        number: int = 1,
        resumed: Sequence[int] = (),
    ) -> None:
        self._info, self._legs, self._context, self._spans = info, legs, context, spans
        self._push, self._number, self._resumed = push, number, resumed

    def run(self, placement: router_pb2.Placement) -> Coroutine[None, None, None]:
        """Errors of what it returns: WorkerFailed; InvalidRequest, when any worker would say so."""
        if not placement.HasField("prefill"):
            return self.run_on(placement.decode, None)
        mode = self._mode(placement)
        self._context.metrics.handed_over(mode)
        run = self._run_pushed if mode is HandoverMode.PUSH else self._run_pulled
        return run(placement)

    @contextlib.contextmanager
    def _lease(self, prefill: WorkerInfo) -> Iterator[_Prefilled]:
        """Gives the lease that prefill grants back, unless decode has used it."""
        prefilled = _Prefilled()
        try:
            yield prefilled
        finally:
            if prefilled.pull_params is not None and not prefilled.fetched:
                traceparent = self._info.span.traceparent
                self._context.workers.release(prefill, prefilled.pull_params, traceparent)

    async def run_on(self, worker: WorkerInfo, prefill_output: EngineOutput | None) -> None:
        """Runs one leg. prefill_output: that of the choices of a request, whose KV the worker has; None: the
        worker computes the prompt, too. Errors: as `run`."""
        context = self._leg_context(worker)
        known = prefill_output is not None
        request = self._legs.decode(context, None) if known else self._legs.whole(context)
        async with self._leg(worker, request) as leg:
            prefilled = _Prefilled(prefill_output=prefill_output)
            await self._show(leg, "decode" if known else "aggregated", prefilled)

    def _mode(self, placement: router_pb2.Placement) -> HandoverMode:
        """As the router chose. A prompt whose last token prefill draws needs no hand-over."""
        pushed = placement.push and self._legs.remaining_tokens(self._resumed) > 1
        return HandoverMode.PUSH if pushed else HandoverMode.PULL

    async def _run_pulled(self, placement: router_pb2.Placement) -> None:
        with self._lease(placement.prefill) as prefilled:
            await self._prefill(placement.prefill, self._legs.prefill, prefilled)
            if not prefilled.over:
                request = self._legs.decode(self._leg_context(placement.decode), prefilled.pull_params)
                async with self._leg(placement.decode, request) as leg:
                    await self._show(leg, "decode", prefilled)

    async def _run_pushed(self, placement: router_pb2.Placement) -> None:
        """Decode waits with its blocks reserved while prefill computes and writes into them."""
        prefill = placement.prefill
        transfer_id = TransferId(self._leg_context(prefill).request_id)
        params = PushParams(
            transfer_id=transfer_id,
            worker_id=WorkerId(prefill.worker_id),
            epoch=prefill.epoch,
            endpoints=tuple(prefill.handover_endpoints),
            num_tokens=self._known_tokens,
            continues=self._legs.exact,
        )
        request = self._legs.decode_ahead(self._leg_context(placement.decode), params.to_params())
        with self._lease(prefill) as prefilled:
            async with self._leg(placement.decode, request, waits=True) as leg:
                push = partial(self._legs.prefill, handover=prefill_params(transfer_id))
                await unless_it_fails(leg, self._prefill(prefill, push, prefilled))
                if not prefilled.over:
                    await self._show(leg, "decode", prefilled, pushed_by=prefill)

    async def _prefill(
        self, worker: WorkerInfo, request_of: Callable[[LegContext], EngineRequest], result: _Prefilled
    ) -> None:
        """Draws one token. Shows it when it is the last one or exact. Its KV is leased when decode
        follows."""
        request = request_of(self._leg_context(worker))
        decode_follows = request.kv_transfer_params is not None
        shown = self._legs.exact or not decode_follows

        def take(output: EngineOutput) -> bool:
            if output.adapter_load is not None:
                self._info.record.adapter_loads.append(("prefill", output.adapter_load))
            result.pull_params = output.kv_transfer_params or result.pull_params
            output = replace(output, kv_transfer_params=None)
            if decode_follows and output.finish_reason is FinishReason.LENGTH:
                output = replace(output, finish_reason=None)
            if not shown:
                result.prefill_output = _without_tokens(output, result.prefill_output)
            elif self._push(output, "prefill"):
                result.over = True
            return result.over

        async with self._leg(worker, request) as leg:
            await leg.pass_to(take)

    async def _show(
        self, leg: LegStream, origin: str, prefilled: _Prefilled, pushed_by: WorkerInfo | None = None
    ) -> None:
        """pushed_by: the prefill worker that sent decode the first token, which the user has. Errors:
        WorkerFailed when decode does not know that token, since it would draw it again. That happens only
        when a prefill worker died between showing the token and sending it on."""

        def take(output: EngineOutput) -> bool:
            if output.adapter_load is not None:
                self._info.record.adapter_loads.append((origin, output.adapter_load))
            stats, before = output.prefill_stats, prefilled.prefill_output
            if pushed_by is not None and stats is not None and stats.prompt_tokens != self._known_tokens:
                raise WorkerFailed(pushed_by, TransferError("decode was not told the first token"))
            if output.token_ids:
                prefilled.fetched = True
            if before is not None:
                prefilled.prefill_output = None
                output = replace(
                    output, prompt_logprobs=before.prompt_logprobs, prefill_stats=before.prefill_stats
                )
            return self._push(output, origin)

        await leg.pass_to(take)

    @contextlib.asynccontextmanager
    async def _leg(
        self, worker: WorkerInfo, request: EngineRequest, *, waits: bool = False
    ) -> AsyncIterator[LegStream]:
        """Yields one leg, and aborts it afterwards unless it has ended. waits: the leg waits for another one
        before it begins itself."""
        limits = self._context.limits
        first_seconds = limits.first_token * (2 if waits else 1)
        try:
            with (
                self._spans.leg(worker, request) as sent,
                contextlib.closing(
                    self._context.workers.open(worker, sent, first_seconds, limits.token)
                ) as leg,
            ):
                yield leg
        except InvalidRequest:
            raise  # another worker would say the same
        except LLMServeError as error:
            raise WorkerFailed(worker, error) from error

    @property
    def _known_tokens(self) -> int:
        return len(self._legs.prompt) + len(self._resumed)

    def _leg_context(self, worker: WorkerInfo) -> LegContext:
        info, adapter = self._info, self._info.adapter.digest
        suffix = f"~{self._number}" if self._number > 1 else ""
        salt = self._context.identity.salt(worker.kv_shape, info.tenant, info.client_salt, adapter)
        name = RequestId(info.request_id + suffix)
        return LegContext(name, salt, info.tenant, self._resumed, adapter)


def _without_tokens(output: EngineOutput, before: EngineOutput | None) -> EngineOutput:
    """Returns what is kept of a prefill whose token is drawn again: the prompt's logprobs and cache
    counts."""
    before = before or EngineOutput(output.request_id)
    return replace(
        before,
        prompt_logprobs=output.prompt_logprobs or before.prompt_logprobs,
        prefill_stats=output.prefill_stats or before.prefill_stats,
    )


async def unless_it_fails(leg: LegStream, work: Coroutine[None, None, None]) -> None:
    """Does the work while the leg waits to begin. When the leg fails meanwhile, cancels the work and raises
    the leg's error."""
    beginning, working = asyncio.ensure_future(leg.has_output()), asyncio.ensure_future(work)
    try:
        await asyncio.wait((beginning, working), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            beginning.result()
        await working
    finally:
        beginning.cancel()
        working.cancel()
        await asyncio.gather(beginning, working, return_exceptions=True)
