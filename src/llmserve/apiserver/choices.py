"""What the choices of one request (`n`) have in common: a place, one computation of the prompt, their steps.

    admit once -> prefill leg -> decode leg that only fetches the KV -> one decode leg for each choice
    admit once -> one leg for each choice                               one worker does both

The last legs are sent together, so that they are in the same steps of the engine, and find the prompt in its
prefix cache. A choice whose worker fails is placed again by itself (request_run.py).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.apiserver.legs import Legs
from llmserve.apiserver.place import Place
from llmserve.apiserver.placed_run import PlacedRun, Try
from llmserve.apiserver.run_context import RequestCard, RunContext
from llmserve.apiserver.run_spans import RunSpans
from llmserve.core.request import EngineOutput, HandoverReport
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo


@dataclass(frozen=True, slots=True)
class Start:
    """Where each choice decodes. prologue: what prefill told of the prompt; None: it is not computed yet."""

    worker: WorkerInfo
    prologue: EngineOutput | None = None


class Choices:
    """cards: of each choice. legs: of any of them; prompt_legs: those that compute the prompt. handovers: of
    the HTTP request; the prompt's is added. Each choice calls `start`, and has a part in `place`."""

    def __init__(
        self,
        card: RequestCard,
        cards: Sequence[RequestCard],
        legs: Legs,
        prompt_legs: Legs,
        context: RunContext,
        handovers: list[HandoverReport],
    ) -> None:
        """card: of all together."""
        self._records, self._handovers = [one.record for one in cards], handovers
        self.place = Place(card, context, self._records, self._cancel)
        self._card, self._legs, self._prompt_legs, self._context = card, legs, prompt_legs, context
        self._spans = RunSpans(context.tracer, card.span)
        self._starting: asyncio.Task[Start] | None = None
        self._prologue: EngineOutput | None = None

    async def start(self) -> Start:
        """The first who asks begins. Errors, the same for all: those of Place.ask; WorkerFailed."""
        if self._starting is None:  # its error is that of the choices, which wait for it
            self._starting = asyncio.create_task(self._start(), name=f"choices.{self._card.request_id}")
        return await asyncio.shield(self._starting)

    async def _start(self) -> Start:
        placement = await self.place.ask(self._legs, self._spans)
        if placement.HasField("prefill") and self._fills_a_block(placement):
            run = PlacedRun(
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
