"""What a placement costs: 100 workers, 1 million blocks, prompts of 100,000 tokens, on one core.

The look-up is that of the KV managers' directory; the decision is everything else that the router does
between an Admit and its Placed. The baselines in the same run look nothing up.
"""

import random
import time
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Literal

from bench.table import markdown
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import ApiserverId, BlockHash, RequestId, TenantId, WorkerId
from llmserve.core.outcome import Outcome, WorkerRole
from llmserve.core.pairs import PairStatus
from llmserve.core.request import EngineLoad
from llmserve.kvstore.directory import BlockReport, Directory, Holder, KvTier
from llmserve.router.filters import PlacementRequest
from llmserve.router.messages import Admit, Placed
from llmserve.router.prefix_match import PrefixMatch, TierRun
from llmserve.router.settings import RouterSettings, build_controller
from llmserve.router.worker import KvShape, WorkerSpec

_WORKERS = 50  # of each role
_PROMPT_TOKENS = 100_000
_BLOCKS = 1_000_000
_PLACEMENTS = 2000
_RUNNING = 400
_KV_BYTES = 128 * 1024  # of a token
_SHAPE = KvShape("rev", "bfloat16", "LBHNC", 16, 1, 1, 16 * _KV_BYTES)

Routing = Literal["kv_aware", "least_loaded", "round_robin"]
_ROUTINGS: tuple[Routing, ...] = ("kv_aware", "least_loaded", "round_robin")


@dataclass(frozen=True, slots=True)
class _Timed:
    """CPU seconds: others on this machine do not count."""

    look_up: float
    decision: float


def run() -> str:
    headings = ("tokens in a block", "routing", "step", "per second", "p50 ms", "p99 ms", "max ms")
    rows = [row for block_tokens in (16, 128) for row in _measured(block_tokens)]
    return markdown(headings, rows)


def _measured(block_tokens: int) -> list[tuple[object, ...]]:
    directory, prompts = _directory(block_tokens)
    rows: list[tuple[object, ...]] = []
    for routing in _ROUTINGS:
        rows += _rows(routing, _Cluster(routing, block_tokens).place_all(directory, prompts))
    return [(block_tokens, *row) for row in rows]


def _directory(block_tokens: int) -> tuple[Directory, list[list[BlockHash]]]:
    """Each prompt is in NVMe, every other one in DRAM, and a part of each on the devices of some workers."""
    rng, directory = random.Random(1), Directory()
    length = _PROMPT_TOKENS // block_tokens
    prompts = [[BlockHash(rng.randbytes(32)) for _ in range(length)] for _ in range(_BLOCKS // length)]
    _report(directory, Holder("kvmanager-0", KvTier.NVME), prompts)
    _report(directory, Holder("kvmanager-0", KvTier.DRAM), prompts[::2])
    for number in range(_WORKERS):
        for role in ("prefill", "decode"):
            held = [prompt[: rng.randint(1, length)] for prompt in rng.sample(prompts, 5)]
            _report(directory, Holder(f"{role}-{number}"), held)
    return directory, prompts


def _report(directory: Directory, holder: Holder, prompts: list[list[BlockHash]]) -> None:
    stored = [block for prompt in prompts for block in prompt]
    directory.apply(BlockReport(holder, 1, 1, snapshot=True, stored=stored))


def match_of(directory: Directory, hashes: list[BlockHash]) -> PrefixMatch:
    """As the prefix index makes it."""
    runs = directory.runs(hashes)
    device: dict[WorkerId, int] = {}
    leading, start = None, 0
    for run in runs:
        here = {holder.node for holder in run.holders if holder.tier is KvTier.DEVICE}
        leading = here if leading is None else leading & here
        start += run.blocks
        device |= {WorkerId(node): start for node in leading}
    tiers = [(_fastest(run.holders), run.blocks) for run in runs]
    merged = groupby(tiers, key=itemgetter(0))
    return PrefixMatch(device, tuple(TierRun(tier, sum(map(itemgetter(1), each))) for tier, each in merged))


def _fastest(holders: tuple[Holder, ...]) -> KvTier | None:
    tiers = {holder.tier for holder in holders}
    return next((tier for tier in (KvTier.DRAM, KvTier.NVME, KvTier.OBJECT) if tier in tiers), None)


class _Cluster:
    """A controller whose workers have some requests running, all pairs measured, and different speeds."""

    def __init__(self, routing: Routing, block_tokens: int) -> None:
        self._clock, self._rng = VirtualClock(), random.Random(3)
        self._controller = build_controller(RouterSettings(routing=routing), self._clock, self._rng)
        self._session, _ = self._controller.open_session(ApiserverId("api"), ())
        for number in range(_WORKERS):
            for role in (WorkerRole.PREFILL, WorkerRole.DECODE):
                self._controller.register(_spec(role, number, block_tokens))
        self._heartbeats()

    def _heartbeats(self) -> None:
        peers = [f"prefill-{number}" for number in range(_WORKERS)]
        for number in range(_WORKERS):
            pairs = tuple(_pair(peer, self._rng.uniform(1e9, 2e10)) for peer in peers)
            self._controller.heartbeat(WorkerId(f"decode-{number}"), 1, EngineLoad(pairs=pairs))

    def place_all(self, directory: Directory, prompts: list[list[BlockHash]]) -> list[_Timed]:
        running: list[RequestId] = []
        timed = []
        for number in range(_PLACEMENTS):
            self._clock.advance(0.002)
            if number % 500 == 0:
                self._heartbeats()
            request_id = RequestId(f"request-{number}")
            timed.append(self._place(request_id, directory, self._rng.choice(prompts)))
            running.append(request_id)
            self._controller.first_token(self._session, running[-1 - min(number, 20)])
            if len(running) > _RUNNING:
                ended = running.pop(self._rng.randrange(len(running) - 50))
                self._controller.done(self._session, ended, Outcome.COMPLETED, self._rng.randint(10, 400))
        return timed

    def _place(self, request_id: RequestId, directory: Directory, prompt: list[BlockHash]) -> _Timed:
        began = time.thread_time()
        match = match_of(directory, prompt)
        looked_up = time.thread_time()
        placement = PlacementRequest("m", _PROMPT_TOKENS, match=match)
        effects = self._controller.admit(self._session, Admit(request_id, TenantId("t"), placement))
        ended = time.thread_time()
        assert [type(effect) for effect in effects] == [Placed]
        return _Timed(looked_up - began, ended - looked_up)


def _spec(role: WorkerRole, number: int, block_tokens: int) -> WorkerSpec:
    name, shape = WorkerId(f"{role}-{number}"), replace(_SHAPE, block_size_tokens=block_tokens)
    shape = replace(shape, block_bytes=block_tokens * _KV_BYTES)
    return WorkerSpec(name, role, "host:1", 1, "m", shape, 200_000, 8_000_000 // block_tokens, 64, ("tcp",))


def _pair(peer: str, speed: float) -> PairStatus:
    return PairStatus(peer, "nixl", True, "closed", "", 0.001, speed, 10, 10**9, 1.0, 0)


def _rows(routing: Routing, timed: list[_Timed]) -> list[tuple[object, ...]]:
    both = [each.look_up + each.decision for each in timed]
    rows = [_row(routing, "look-up and decision", both)]
    if routing == "kv_aware":
        rows.append(_row("", "look-up", [each.look_up for each in timed]))
        rows.append(_row("", "decision", [each.decision for each in timed]))
    return rows


def _row(routing: str, step: str, seconds: list[float]) -> tuple[object, ...]:
    ordered = sorted(seconds)
    p50, p99 = (ordered[int(len(ordered) * share)] * 1e3 for share in (0.5, 0.99))
    rate = len(ordered) / sum(ordered)
    return (routing, step, f"{rate:,.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{ordered[-1] * 1e3:.2f}")
