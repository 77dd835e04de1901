"""A place at the router, from the question for it to Done. The choices of a request share one."""

import asyncio
from collections.abc import Callable, Sequence

from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.apiserver.legs import Legs
from llmserve.apiserver.run_context import RequestCard, RunContext
from llmserve.apiserver.run_spans import RunSpans
from llmserve.core.errors import RouterUnavailable
from llmserve.core.outcome import Outcome
from llmserve.core.request import PrefillStats
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_PROGRESS_TOKENS = 256


class Place:
    """records: one for each choice that is to have it; each calls `done`, and the last one gives it back.
    on_over: is called then. card.request_id is its name at the router."""

    def __init__(
        self,
        card: RequestCard,
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
