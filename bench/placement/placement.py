"""What a placement costs: 100 workers, 1 million blocks, prompts of 100,000 tokens, on one core.

Of the whole way from an Admit to its Placed, the look-up in the prefix index is timed a second time by
itself. The baselines in the same run have no hashes to look up.
"""

import random
import time
from dataclasses import dataclass, replace
from typing import Literal

from bench.table import markdown
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import ApiserverId, BlockHash, RequestId, TenantId, WorkerId
from llmserve.core.request import EngineLoad, Outcome, PairStatus, WorkerRole
from llmserve.kvstore.directory.directory import Holder, KvTier
from llmserve.kvstore.directory.watcher import DirectoryUpdate
from llmserve.router.controller import Controller
from llmserve.router.events import Admit, RequestPlaced
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.prefix.index import HashedPrompt, PrefixIndex
from llmserve.router.settings import RouterSettings
from llmserve.router.workers.worker import KvShape, WorkerSpec

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
    """CPU seconds: others on this machine do not count. all: with the look-up."""

    look_up: float
    all: float


def run() -> str:
    headings = ("tokens in a block", "routing", "step", "per second", "p50 ms", "p99 ms", "max ms")
    rows = [row for block_tokens in (16, 128) for row in _measured(block_tokens)]
    return markdown(headings, rows)


def _measured(block_tokens: int) -> list[tuple[object, ...]]:
    index, prompts = _index(block_tokens)
    rows: list[tuple[object, ...]] = []
    for routing in _ROUTINGS:
        rows += _rows(routing, _Cluster(routing, block_tokens, index).place_all(prompts))
    return [(block_tokens, *row) for row in rows]


def _index(block_tokens: int) -> tuple[PrefixIndex, list[list[BlockHash]]]:
    """Each prompt is in NVMe, every other one in DRAM, and a part of each on the devices of some workers."""
    rng, index = random.Random(1), PrefixIndex()
    index.begin("kvmanager-0")
    length = _PROMPT_TOKENS // block_tokens
    prompts = [[BlockHash(rng.randbytes(32)) for _ in range(length)] for _ in range(_BLOCKS // length)]
    _tell(index, Holder("kvmanager-0", KvTier.NVME), prompts)
    _tell(index, Holder("kvmanager-0", KvTier.DRAM), prompts[::2])
    for number in range(_WORKERS):
        for role in ("prefill", "decode"):
            held = [prompt[: rng.randint(1, length)] for prompt in rng.sample(prompts, 5)]
            _tell(index, Holder(f"{role}-{number}"), held)
    return index, prompts


def _tell(index: PrefixIndex, holder: Holder, prompts: list[list[BlockHash]]) -> None:
    stored = tuple(block for prompt in prompts for block in prompt)
    assert index.apply("kvmanager-0", DirectoryUpdate(holder, 1, is_snapshot=True, stored=stored))


class _Cluster:
    """A controller whose workers have some requests running, all pairs measured, and different speeds."""

    def __init__(self, routing: Routing, block_tokens: int, index: PrefixIndex) -> None:
        self._clock, self._rng = VirtualClock(), random.Random(3)
        self._index, self._block_tokens, self._hashed = index, block_tokens, routing == "kv_aware"
        settings = RouterSettings(routing=routing, engine_queue_seconds=1e9)
        self._controller = Controller(settings, self._clock, self._rng, index)
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

    def place_all(self, prompts: list[list[BlockHash]]) -> list[_Timed]:
        running: list[RequestId] = []
        timed = []
        for number in range(_PLACEMENTS):
            self._clock.advance(0.002)
            if number % 500 == 0:
                self._heartbeats()
            request_id = RequestId(f"request-{number}")
            timed.append(self._place(request_id, self._rng.choice(prompts)))
            running.append(request_id)
            self._controller.requests.first_token(self._session, running[-1 - min(number, 20)])
            if len(running) > _RUNNING:
                ended = running.pop(self._rng.randrange(len(running) - 50))
                self._controller.requests.done(
                    self._session, ended, Outcome.COMPLETED, self._rng.randint(10, 400)
                )
        return timed

    def _place(self, request_id: RequestId, hashes: list[BlockHash]) -> _Timed:
        prompt = HashedPrompt(hashes, self._block_tokens) if self._hashed else HashedPrompt()
        admit = Admit(request_id, TenantId("t"), PlacementRequest("m", _PROMPT_TOKENS), prompt=prompt)
        began = time.thread_time()
        effects = self._controller.requests.admit(self._session, admit)
        placed = time.thread_time()
        self._index.match(prompt)
        ended = time.thread_time()
        assert [type(effect) for effect in effects] == [RequestPlaced]
        return _Timed(ended - placed, placed - began)


def _spec(role: WorkerRole, number: int, block_tokens: int) -> WorkerSpec:
    name, shape = WorkerId(f"{role}-{number}"), replace(_SHAPE, block_size_tokens=block_tokens)
    shape = replace(shape, block_bytes=block_tokens * _KV_BYTES)
    return WorkerSpec(name, role, "host:1", 1, "m", shape, 200_000, 8_000_000 // block_tokens, 64, ("tcp",))


def _pair(peer: str, speed: float) -> PairStatus:
    return PairStatus(peer, "nixl", True, "closed", "", 0.001, speed, 10, 10**9, 1.0, 0)


def _rows(routing: Routing, timed: list[_Timed]) -> list[tuple[object, ...]]:
    rows = [_row(routing, "all", [each.all for each in timed])]
    if routing == "kv_aware":
        rows.append(_row("", "look-up alone", [each.look_up for each in timed]))
    return rows


def _row(routing: str, step: str, seconds: list[float]) -> tuple[object, ...]:
    ordered = sorted(seconds)
    p50, p99 = (ordered[int(len(ordered) * share)] * 1e3 for share in (0.5, 0.99))
    rate = len(ordered) / sum(ordered)
    return (routing, step, f"{rate:,.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{ordered[-1] * 1e3:.2f}")
