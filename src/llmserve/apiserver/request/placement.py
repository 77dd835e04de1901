"""A placement at the router, from the question for it to Done, and the choices that share one."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.apiserver.request.attempt import Attempt, Try
from llmserve.apiserver.request.context import Legs, RequestInfo, RunContext
from llmserve.apiserver.request.observe import RunSpans
from llmserve.core.errors import RouterUnavailable
from llmserve.core.outcome import Outcome
from llmserve.core.request import EngineOutput, HandoverReport, PrefillStats
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo

_PROGRESS_TOKENS = 256


class RequestPlacement:
    """records: one for each choice that is to have it; each calls `done`, and the last one gives it back.
    on_over: is called then. card.request_id is its name at the router."""

    def __init__(
        self,
        card: RequestInfo,
        context: RunContext,
        records: Sequence[SequenceRecord],
        on_over: Callable[[], None] = lambda: None,
    ) -> None:
        self._card, self._context, self._records, self._on_over = card, context, records, on_over
        self._left = len(records)
        self._heard = False
        self._generated = 0
        self._prefilled: PrefillStats | None = None
        self._outcome = Outcome.COMPLETED

    async def ask(
        self, legs: Legs, spans: RunSpans, as_prompt: Sequence[int] = (), excluded: Sequence[str] = ()
    ) -> router_pb2.Placement:
        """legs: of a choice. as_prompt: tokens of the answer that it goes on from.
        Errors: AdmissionRefused, RouterUnavailable."""
        context, seconds = self._context, self._context.limits.admission
        for record in self._records:
            record.asked()
        admit = self._admit(legs, as_prompt, excluded)
        with spans.admit(admit):
            try:
                async with asyncio.timeout(seconds):
                    return await context.router.admit(admit, self._placed)
            except TimeoutError as error:
                raise RouterUnavailable(f"the router gave no place within {seconds:g} s") from error

    def _admit(self, legs: Legs, as_prompt: Sequence[int], excluded: Sequence[str]) -> router_pb2.Admit:
        card, context = self._card, self._context
        shape = context.router.kv_shape
        prompt = [*legs.prompt, *as_prompt] if as_prompt else legs.prompt
        return router_pb2.Admit(
            request_id=card.request_id,
            tenant=card.tenant,
            model=context.model,
            prompt_tokens=len(prompt),
            max_output_tokens=legs.remaining_tokens(as_prompt) * len(self._records),
            block_hashes=context.identity.block_hashes(prompt, shape, card.tenant, card.client_salt),
            block_tokens=shape.block_size_tokens,
            priority=legs.priority,
            excluded_workers=excluded,
            choices=len(self._records),
        )

    def _placed(self, placed: router_pb2.Placed) -> None:
        for record in self._records:
            record.placed(placed)

    def first_token(self) -> None:
        """Prefill is over. The first counts."""
        if not self._heard:
            self._heard = True
            self._context.router.first_token(self._card.request_id)

    def prefilled(self, stats: PrefillStats) -> None:
        """As an engine told. The first counts: what others found of the prompt, that one has computed."""
        self._prefilled = self._prefilled or stats

    def generated(self, tokens: int) -> None:
        """Tells the router of every so many: a long answer holds more than was expected."""
        before, self._generated = self._generated, self._generated + tokens
        if self._generated // _PROGRESS_TOKENS > before // _PROGRESS_TOKENS:
            self._context.router.progress(self._card.request_id, self._generated)

    def done(self, outcome: Outcome) -> None:
        """Once by each choice."""
        self._left -= 1
        if self._outcome is Outcome.COMPLETED:
            self._outcome = outcome
        if self._left == 0:
            name = self._card.request_id
            self._context.router.done(name, self._outcome, self._generated, self._prefilled)
            self._on_over()


@dataclass(frozen=True, slots=True)
class Start:
    """The worker on which each choice decodes. prefill_output: what prefill reported of the prompt; None when
    the prompt is not computed yet."""

    worker: WorkerInfo
    prefill_output: EngineOutput | None = None


class ChoiceGroup:
    """cards: of each choice. legs: of any of them; prompt_legs: those that compute the prompt. handovers: of
    the HTTP request; the prompt's is added. Each choice calls `start`, and has a part in `place`."""

    def __init__(
        self,
        card: RequestInfo,
        cards: Sequence[RequestInfo],
        legs: Legs,
        prompt_legs: Legs,
        context: RunContext,
        handovers: list[HandoverReport],
    ) -> None:
        """card: of all together."""
        self._records, self._handovers = [one.record for one in cards], handovers
        self.place = RequestPlacement(card, context, self._records, self._cancel)
        self._card, self._legs, self._prompt_legs, self._context = card, legs, prompt_legs, context
        self._spans = RunSpans(context.tracer, card.span)
        self._starting: asyncio.Task[Start] | None = None
        self._prologue: EngineOutput | None = None

    async def start(self) -> Start:
        """The first caller begins. All get the same errors: of RequestPlacement.ask; WorkerFailed."""
        if self._starting is None:  # its error is that of the choices, which wait for it
            self._starting = asyncio.create_task(self._start(), name=f"choices.{self._card.request_id}")
        return await asyncio.shield(self._starting)

    async def _start(self) -> Start:
        placement = await self.place.ask(self._legs, self._spans)
        if placement.HasField("prefill") and self._fills_a_block(placement):
            run = Attempt(
                self._card, self._prompt_legs, self._context, self._spans, Try(), self._prompt_is_there
            )
            await run.run(placement)
        return Start(placement.decode, self._prologue)

    def _fills_a_block(self, placement: router_pb2.Placement) -> bool:
        """Only full blocks stay where all find them; a shorter prompt is computed in no time."""
        return len(self._legs.prompt) > placement.decode.kv_shape.block_size_tokens

    def _prompt_is_there(self, output: EngineOutput, origin: str) -> bool:
        self._prologue = output
        if output.handover is not None:
            for handovers in (self._handovers, *(record.handovers for record in self._records)):
                handovers.append(output.handover)
        return True

    def _cancel(self) -> None:
        """Nobody waits for it any more."""
        if self._starting is not None:
            self._starting.cancel()
