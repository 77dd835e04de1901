"""Predicted seconds of one request on each worker, and between two. Pure.

Everything is measured in the same seconds: those that the request itself waits, and those for which it holds
others up. docs/placement.md has the formulas and a worked example.
"""

from typing import NamedTuple

from llmserve.router.filters import PlacementRequest
from llmserve.router.line_fit import LineFit
from llmserve.router.links import UNKNOWN_LINK
from llmserve.router.overlap import Overlap
from llmserve.router.pace import Paces
from llmserve.router.worker import KvShape, Member

# Tokens of an answer that count for the slowdown by others: beyond, those come and go.
_OUTLOOK_TOKENS = 64


class PromptCost(NamedTuple):
    """Of the prompt on one worker, in seconds; tokens: what it computes."""

    queue: float
    load: float
    compute: float
    tokens: int

    @property
    def seconds(self) -> float:
        return self.queue + self.load + self.compute


class Forecast:
    """Of one request, at `now`. shape: of the workers of its model, which agree on what matters here."""

    def __init__(
        self, request: PlacementRequest, output_tokens: int, paces: Paces, shape: KvShape, now: float
    ) -> None:
        self.prompt_tokens = request.prompt_tokens
        self.overlap = Overlap(request.match, request.prompt_tokens, shape)
        self._output_tokens = output_tokens
        self._pace = paces.of_model(request.model)
        self._bytes_per_token = shape.bytes_per_token
        self._now = now

    def prompt(self, member: Member) -> PromptCost:
        """Waiting there, loading what is worth it, computing the rest."""
        seats = member.seats
        line = (seats.pace or self._pace).prefill
        held, seconds = self.overlap.at(member.spec.worker_id), 0.0
        tokens = self.prompt_tokens - held.device_tokens
        for load in held.loads:
            # What is slower to load than to compute is computed, with all that follows: the engine does so.
            if load.seconds >= load.tokens * line.slope:
                break
            tokens, seconds = tokens - load.tokens, seconds + load.seconds
        return PromptCost(seats.backlog.seconds(self._now), seconds, line.fixed + line.slope * tokens, tokens)

    def cold(self, member: Member) -> PromptCost:
        """As if the worker held nothing of it."""
        line = self._prefill_line(member)
        queue = member.seats.backlog.seconds(self._now)
        return PromptCost(queue, 0.0, line.seconds(self.prompt_tokens), self.prompt_tokens)

    def decode(self, member: Member) -> float:
        """Until its first step, with what others slow it down there: those that decode, and too little room
        for its KV."""
        seats = member.seats
        line = (seats.pace or self._pace).decode
        running = seats.placed_requests
        step = line.fixed + line.slope * (running + 1)
        slowdown = min(self._output_tokens, _OUTLOOK_TOKENS) * line.slope * running
        room = self._missing_room(member)
        return step + slowdown + room * self._output_tokens * step

    def busy(self, decode: Member) -> float:
        """Steps of a decode worker that computes prompts itself are as long as those."""
        return decode.seats.backlog.seconds(self._now)

    def hold_up(self, member: Member, prompt: PromptCost) -> float:
        """Those that decode on a worker wait while it computes a prompt. At least one: others come while
        it computes."""
        return prompt.tokens * self._prefill_line(member).slope * max(1, member.seats.placed_requests)

    def typical_handover(self, decode: Member) -> float:
        """From any prefill worker, before one is chosen."""
        return UNKNOWN_LINK.seconds(self._handover_bytes(decode))

    def saved_handover(self, decode: Member) -> float:
        """What the worker's cache takes off its typical hand-over."""
        cold = UNKNOWN_LINK.seconds(self.prompt_tokens * self._bytes_per_token)
        return cold - self.typical_handover(decode)

    def handover(self, prefill: Member, decode: Member) -> float:
        """The second leg, and the KV that the decode worker does not have. Of a pair that cannot exchange
        KV: computing it again."""
        leg = self._pace.prefill.fixed
        link = decode.link_from(prefill.spec.worker_id) or UNKNOWN_LINK
        if link.refused:
            return leg + self._prefill_line(decode).seconds(self.prompt_tokens)
        return leg + link.seconds(self._handover_bytes(decode))

    # -- parts

    def _prefill_line(self, member: Member) -> LineFit:
        return (member.seats.pace or self._pace).prefill

    def _handover_bytes(self, decode: Member) -> float:
        held = self.overlap.at(decode.spec.worker_id)
        return (self.prompt_tokens - held.device_tokens) * self._bytes_per_token

    def _missing_room(self, member: Member) -> float:
        """The share of its KV for which there is no room now, 0 to 1."""
        size = member.spec.kv_shape.block_size_tokens
        capacity = member.spec.total_blocks * size  # 0: not told
        needed = self.prompt_tokens + self._output_tokens
        short = max(member.load.used_blocks * size, member.seats.kv_tokens) + needed - capacity
        return min(1.0, short / needed) if capacity and short > 0 else 0.0
