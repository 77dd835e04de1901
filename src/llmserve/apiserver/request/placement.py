"""A placement at the router, from the question for it to Done, and the choices that share one."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.apiserver.links.requests import AdmissionRefused, PlacementEnd
from llmserve.apiserver.request.attempt import Attempt
from llmserve.apiserver.request.context import Legs, RequestInfo, RunContext
from llmserve.apiserver.request.observe import RunSpans
from llmserve.core.errors import NotFound, RouterUnavailable
from llmserve.core.ids import AdapterDigest
from llmserve.core.request import EngineOutput, HandoverReport, Outcome, PrefillStats
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo
from llmserve.scheduler.key_limits import KeyLimits

_PROGRESS_TOKENS = 256


class RequestPlacement:
    """A placement at the router. records: one for each choice that shares it; each choice calls `done`, and
    the last one gives the placement back and calls on_over. info.request_id is its name at the router.
    generated: tokens of all choices; who adds to it calls `report_progress` once it has reached report_at."""

    def __init__(
        self,
        info: RequestInfo,
        context: RunContext,
        records: Sequence[SequenceRecord],
        on_over: Callable[[], None] = lambda: None,
    ) -> None:
        self._info, self._context, self._records, self._on_over = info, context, records, on_over
        self._left = len(records)
        self._first_token_at = 0.0  # 0: there is none yet
        self._handover_seconds: float | None = None
        self.generated, self.report_at = 0, _PROGRESS_TOKENS
        self._prefilled: PrefillStats | None = None
        self._outcome = Outcome.COMPLETED

    async def ask(
        self, legs: Legs, spans: RunSpans, resumed: Sequence[int] = (), excluded: Sequence[str] = ()
    ) -> router_pb2.Placement:
        """Asks the router for workers. legs: those of any choice. resumed: tokens of the answer so far that
        it goes on from. excluded: ids of workers. Errors: AdmissionRefused, RouterUnavailable."""
        for record in self._records:
            record.asked()
        version = self._info.adapter
        while True:
            admit = self._admit(legs, resumed, excluded)
            for record in self._records:
                record.adapter_version = version.digest
            try:
                placement = await self._ask_for(admit, spans)
            except AdmissionRefused as refusal:
                refused = AdapterDigest(admit.adapter)
                if not isinstance(refusal.error, NotFound) or not version.moves_on(refused):
                    raise
            else:
                version.settle()
                return placement

    async def _ask_for(self, admit: router_pb2.Admit, spans: RunSpans) -> router_pb2.Placement:
        context = self._context
        seconds = admit.timeout_seconds or context.limits.admission
        with spans.admit(admit):
            try:
                async with asyncio.timeout(seconds):
                    return await context.router.admit(admit, self._placed)
            except TimeoutError as error:
                raise RouterUnavailable(f"the router gave no place within {seconds:g} s") from error

    def _admit(self, legs: Legs, resumed: Sequence[int], excluded: Sequence[str]) -> router_pb2.Admit:
        info, context = self._info, self._context
        shape = context.router.kv_shape(context.model)
        prompt = [*legs.prompt, *resumed] if resumed else legs.prompt
        return router_pb2.Admit(
            request_id=info.request_id,
            tenant=info.flow,
            model=context.model,
            prompt_tokens=len(prompt),
            max_output_tokens=legs.remaining_tokens(resumed) * len(self._records),
            block_hashes=context.identity.block_hashes(
                prompt, shape, info.tenant, info.client_salt, info.adapter.digest
            ),
            block_tokens=shape.block_size_tokens,
            priority=legs.priority,
            excluded_workers=excluded,
            choices=len(self._records),
            # An engine may take longer to start than a request is to wait for others.
            timeout_seconds=context.limits.request if context.router.is_coming(context.model) else 0.0,
            adapter=info.adapter.digest,
            again=bool(excluded),
            key_limits=_encoded(info.limits) if info.limits else None,
        )

    def _placed(self, placed: router_pb2.Placed) -> None:
        for record in self._records:
            record.placed(placed)

    def first_token(self) -> None:
        """Tells the router that prefill is over. Only the first call counts."""
        if not self._first_token_at:
            self._first_token_at = time.monotonic()
            self._context.router.first_token(self._info.request_id)

    def handed_over(self) -> None:
        """Decode's first output is here. What it took is not known when the first token is decode's."""
        if self._first_token_at:
            self._handover_seconds = time.monotonic() - self._first_token_at

    def prefilled(self, stats: PrefillStats) -> None:
        """Keeps what an engine reports. Only the first call counts: it computed what later ones find
        cached."""
        self._prefilled = self._prefilled or stats

    def report_progress(self) -> None:
        """Reports every _PROGRESS_TOKENS to the router: a long answer holds more blocks than was expected."""
        self.report_at = (self.generated // _PROGRESS_TOKENS + 1) * _PROGRESS_TOKENS
        self._context.router.progress(self._info.request_id, self.generated)

    def done(self, outcome: Outcome) -> None:
        """Called once by each choice."""
        self._left -= 1
        if self._outcome is Outcome.COMPLETED:
            self._outcome = outcome
        if self._left == 0:
            end = PlacementEnd(self._outcome, self.generated, self._prefilled, self._handover_seconds)
            self._context.router.done(self._info.request_id, end)
            self._on_over()


def _encoded(limits: KeyLimits) -> router_pb2.KeyLimits:
    return router_pb2.KeyLimits(**asdict(limits))


@dataclass(frozen=True, slots=True)
class ChoiceStart:
    """The worker on which each choice decodes. prefill_output: what prefill reported of the prompt; None when
    the prompt is not computed yet."""

    worker: WorkerInfo
    prefill_output: EngineOutput | None = None


class ChoiceGroup:
    """What the choices of one request (`n`) share: a placement, one computation of the prompt, and their
    steps.

        admit once -> prefill leg -> decode leg that only fetches the KV -> one decode leg for each choice
        admit once -> one leg for each choice                               one worker does both

    The last legs are sent together, so that they are in the same steps of the engine and find the prompt in
    its prefix cache. A choice whose worker fails is placed again by itself (run.py). Each choice calls
    `start`, and `done` of `placement`."""

    def __init__(
        self,
        info: RequestInfo,
        choices: Sequence[RequestInfo],
        legs: Legs,
        prompt_legs: Legs,
        context: RunContext,
        handovers: list[HandoverReport],
    ) -> None:
        """info: that of all choices together; choices: that of each. legs: those of any choice; prompt_legs:
        those that compute the prompt. handovers: list of the HTTP request, to which the prompt's report is
        added."""
        self._records, self._handovers = [one.record for one in choices], handovers
        self.placement = RequestPlacement(info, context, self._records, self._cancel)
        self._info, self._legs, self._prompt_legs, self._context = info, legs, prompt_legs, context
        self._spans = RunSpans(context.tracer, info.span)
        self._starting: asyncio.Task[ChoiceStart] | None = None
        self._prefill_output: EngineOutput | None = None

    async def start(self) -> ChoiceStart:
        """The first caller begins. All get the same errors: of RequestPlacement.ask; WorkerFailed."""
        if self._starting is None:  # its error is that of the choices, which wait for it
            self._starting = asyncio.create_task(self._start(), name=f"choices.{self._info.request_id}")
        return await asyncio.shield(self._starting)

    async def _start(self) -> ChoiceStart:
        placement = await self.placement.ask(self._legs, self._spans)
        if placement.HasField("prefill") and self._fills_a_block(placement):
            push = self._on_prompt_computed
            attempt = Attempt(self._info, self._prompt_legs, self._context, self._spans, push)
            await attempt.run(placement)
            for record in self._records:
                record.adapter_loads.extend(self._info.record.adapter_loads)
        return ChoiceStart(placement.decode, self._prefill_output)

    def _fills_a_block(self, placement: router_pb2.Placement) -> bool:
        """Only full blocks stay in the prefix cache, where all choices find them."""
        return len(self._legs.prompt) > placement.decode.kv_shape.block_size_tokens

    def _on_prompt_computed(self, output: EngineOutput, origin: str) -> bool:
        self._prefill_output = output
        if output.handover is not None:
            for handovers in (self._handovers, *(record.handovers for record in self._records)):
                handovers.append(output.handover)
        return True

    def _cancel(self) -> None:
        """Called when no choice waits for the start any more."""
        if self._starting is not None:
            self._starting.cancel()
