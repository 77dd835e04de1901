"""Predicted seconds of one request on each worker, and between two workers. Pure.

Everything is in the same seconds: those that the request waits, and those for which it holds others up.
docs/placement.md has the formulas and a worked example.
"""

from typing import NamedTuple

from llmserve.core.ids import WorkerId
from llmserve.kvstore.directory.directory import KvTier
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.prefix.match import PrefixMatch
from llmserve.router.workers.latency import LineFit
from llmserve.router.workers.speed import WorkerSpeeds
from llmserve.router.workers.worker import UNKNOWN_LINK, ClusterMember, KvShape


class TierSpeed(NamedTuple):
    fixed_seconds: float
    bytes_per_second: float


# Of one loading into an engine, checks included: the order of what docs/performance.md measures.
TIER_SPEEDS = {
    KvTier.DRAM: TierSpeed(0.001, 5e9),
    KvTier.NVME: TierSpeed(0.003, 1.5e9),
    KvTier.OBJECT: TierSpeed(0.050, 0.2e9),
}


class TierLoad(NamedTuple):
    """This many tokens can be loaded in this time, after the tokens before them."""

    tokens: int
    seconds: float


class CachedPrompt(NamedTuple):
    """device_tokens: tokens in the worker's own cache. loads: what it can load after them, in order."""

    device_tokens: int
    loads: list[TierLoad]


class PrefixOverlap:
    """What each worker need not compute of one prompt: its own cache is free, tiers cost time. Workers with
    equally many blocks are computed once, because every placement asks for every worker."""

    def __init__(self, match: PrefixMatch, prompt_tokens: int, shape: KvShape) -> None:
        self._match = match
        self._block_tokens = shape.block_size_tokens
        self._block_bytes = shape.bytes_per_token * shape.block_size_tokens
        # An engine computes at least the last token, whatever it has.
        self._most_tokens = max(0, prompt_tokens - 1) // max(1, self._block_tokens) * self._block_tokens
        self._known: dict[int, CachedPrompt] = {}

    def at(self, worker_id: WorkerId) -> CachedPrompt:
        have = self._match.device_blocks(worker_id)
        held = self._known.get(have)
        if held is None:
            tokens = min(have * self._block_tokens, self._most_tokens)
            held = self._known[have] = CachedPrompt(
                tokens, self._loads(worker_id, self._most_tokens - tokens)
            )
        return held

    def _loads(self, worker_id: WorkerId, left_tokens: int) -> list[TierLoad]:
        loads: list[TierLoad] = []
        for run in self._match.loadable(worker_id):
            speed = TIER_SPEEDS.get(run.tier) if run.tier else None
            tokens = min(run.blocks * self._block_tokens, left_tokens)
            if speed is None or tokens <= 0:
                break
            left_tokens -= tokens
            size_bytes = tokens / self._block_tokens * self._block_bytes
            loads.append(TierLoad(tokens, speed.fixed_seconds + size_bytes / speed.bytes_per_second))
        return loads


# Tokens of an answer that count for the slowdown by others: beyond, those come and go.
_OUTLOOK_TOKENS = 64


class PromptCost(NamedTuple):
    """Seconds of the prompt on one worker. tokens: tokens that it computes."""

    queue: float
    load: float
    compute: float
    tokens: int

    @property
    def seconds(self) -> float:
        return self.queue + self.load + self.compute


class CostForecast:
    """Forecast of one request at the time `now`. shape: of the workers of its model, which agree on what
    matters here."""

    def __init__(
        self,
        request: PlacementRequest,
        output_tokens: int,
        speeds: WorkerSpeeds,
        shape: KvShape,
        now: float,
    ) -> None:
        self.prompt_tokens = request.prompt_tokens
        self.overlap = PrefixOverlap(request.match, request.prompt_tokens, shape)
        self._output_tokens = output_tokens
        self._latency = speeds.of_model(request.model)
        self._bytes_per_token = shape.bytes_per_token
        self._now = now

    def prompt(self, member: ClusterMember) -> PromptCost:
        """Waits there, loads what is faster to load than to compute, and computes the rest."""
        slots = member.slots
        line = (slots.latency or self._latency).prefill
        held, seconds = self.overlap.at(member.spec.worker_id), 0.0
        tokens = self.prompt_tokens - held.device_tokens
        for load in held.loads:
            # What is slower to load than to compute is computed, with all that follows: the engine does so.
            if load.seconds >= load.tokens * line.slope:
                break
            tokens, seconds = tokens - load.tokens, seconds + load.seconds
        return PromptCost(slots.backlog.seconds(self._now), seconds, line.fixed + line.slope * tokens, tokens)

    def cold(self, member: ClusterMember) -> PromptCost:
        """The cost if the worker had none of the prompt cached."""
        line = self._prefill_line(member)
        queue = member.slots.backlog.seconds(self._now)
        return PromptCost(queue, 0.0, line.seconds(self.prompt_tokens), self.prompt_tokens)

    def decode(self, member: ClusterMember) -> float:
        """Seconds until its first step, the slowdown by requests that decode there, and the wait for KV
        room."""
        slots = member.slots
        line = (slots.latency or self._latency).decode
        running = slots.placed_requests
        step = line.fixed + line.slope * (running + 1)
        slowdown = min(self._output_tokens, _OUTLOOK_TOKENS) * line.slope * running
        room = self._missing_room(member)
        return step + slowdown + room * self._output_tokens * step

    def busy(self, decode: ClusterMember) -> float:
        """A decode worker that computes prompts has steps as long as those."""
        return decode.slots.backlog.seconds(self._now)

    def hold_up(self, member: ClusterMember, prompt: PromptCost) -> float:
        """Requests that decode on a worker wait while it computes a prompt. At least one counts, because
        others arrive meanwhile."""
        return prompt.tokens * self._prefill_line(member).slope * max(1, member.slots.placed_requests)

    def typical_handover(self, decode: ClusterMember) -> float:
        """The hand-over from any prefill worker, before one is chosen."""
        return UNKNOWN_LINK.seconds(self._handover_bytes(decode))

    def saved_handover(self, decode: ClusterMember) -> float:
        """The part of a typical hand-over that the worker's cache saves."""
        cold = UNKNOWN_LINK.seconds(self.prompt_tokens * self._bytes_per_token)
        return cold - self.typical_handover(decode)

    def handover(self, prefill: ClusterMember, decode: ClusterMember) -> float:
        """The second leg, and the KV that the decode worker does not have. A pair that cannot exchange KV
        computes the prompt again."""
        leg = self._latency.prefill.fixed
        link = decode.link_from(prefill.spec.worker_id) or UNKNOWN_LINK
        if link.refused:
            return leg + self._prefill_line(decode).seconds(self.prompt_tokens)
        return leg + link.seconds(self._handover_bytes(decode))

    # -- parts

    def _prefill_line(self, member: ClusterMember) -> LineFit:
        return (member.slots.latency or self._latency).prefill

    def _handover_bytes(self, decode: ClusterMember) -> float:
        held = self.overlap.at(decode.spec.worker_id)
        return (self.prompt_tokens - held.device_tokens) * self._bytes_per_token

    def _missing_room(self, member: ClusterMember) -> float:
        """The share of its KV for which there is no room now, 0 to 1."""
        size = member.spec.kv_shape.block_size_tokens
        capacity = member.spec.total_blocks * size  # 0: unknown
        needed = self.prompt_tokens + self._output_tokens
        used = max(member.load.used_blocks * size, member.slots.kv_tokens)
        short = max(0, used + needed - capacity)
        return min(1.0, short / needed) if capacity and short else 0.0
