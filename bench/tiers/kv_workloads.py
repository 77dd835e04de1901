"""Requests as a KV store sees them: which blocks each asks for, and which it leaves behind. Seeded.

A block is 128 tokens. Times are virtual seconds.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace, merge
from itertools import islice

from llmserve.core.ids import DEFAULT_TENANT, BlockHash, TenantId

BLOCK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class KvRequest:
    """blocks: of the prompt and of the answer; the first prompt_blocks are looked up."""

    at: float
    blocks: Sequence[BlockHash]
    prompt_blocks: int
    tenant: TenantId = DEFAULT_TENANT


Workload = Iterator[KvRequest]


def chat(seed: int = 1, users: int = 400, think_seconds: float = 60.0, system_blocks: int = 8) -> Workload:
    """Each user talks to one of four assistants: 1 to 20 turns (8 in the mean) of one block of question
    and two of answer, with time to think in between; then begins anew."""
    return _sessions(
        seed,
        sessions=users,
        prefixes=[(f"system{number}", system_blocks) for number in range(4 if system_blocks else 1)],
        turns=lambda rng: 1 + min(19, int(rng.expovariate(1 / 7.5))),
        pause=lambda rng: rng.lognormvariate(0, 1) * think_seconds / 1.65,
        grows=(1, 2),
    )


def bare_chat(seed: int = 2) -> Workload:
    """Without a system prompt, and slower: nothing is shared between users."""
    return chat(seed, users=600, think_seconds=180.0, system_blocks=0)


def agents(seed: int = 3) -> Workload:
    """Eight kinds of agents, some popular (zipf), each with 60 blocks of tools and rules in front; 5 to 30
    quick steps that add three blocks each."""
    return _sessions(
        seed,
        sessions=60,
        prefixes=[(f"agent{number}", 60) for number in range(8)],
        turns=lambda rng: rng.randint(5, 30),
        pause=lambda rng: rng.expovariate(1 / 6.0),
        grows=(2, 1),
    )


def documents(seed: int = 4, kinds: int = 2000) -> Workload:
    """Questions on documents of 40 blocks, by zipf; the question comes last."""
    rng = random.Random(seed)
    weights = [1 / rank for rank in range(1, kinds + 1)]
    at, number = 0.0, 0
    while True:
        at, number = at + rng.expovariate(3.0), number + 1
        (document,) = rng.choices(range(kinds), weights)
        blocks = [*_blocks(f"d{document}", 40), *_blocks(f"q{number}", 2)]
        yield KvRequest(at, blocks, 41)


def scans(seed: int = 5, per_second: float = 4.0, tenant: TenantId = DEFAULT_TENANT) -> Workload:
    """A batch job: prompts of 40 blocks, each once, behind a common instruction of four blocks."""
    rng = random.Random(seed)
    at, number = 0.0, 0
    common = _blocks("scan", 4)
    while True:
        at, number = at + rng.expovariate(per_second), number + 1
        yield KvRequest(at, [*common, *_blocks(f"s{seed}.{number}", 38)], 41, tenant)


def mixed(seed: int = 6) -> Workload:
    """Chat, agents, documents and a batch job at once."""
    parts = (chat(seed), agents(seed + 1), documents(seed + 2), scans(seed + 3))
    return merge(*parts, key=lambda request: request.at)


def noisy_neighbour(seed: int = 7) -> Workload:
    """One tenant chats, another runs a heavy batch job."""
    parts = (chat(seed), scans(seed + 1, 20.0, TenantId("batch")))
    return merge(*parts, key=lambda request: request.at)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "chat": chat,
    "chat, nothing shared": bare_chat,
    "agents": agents,
    "documents": documents,
    "mixed": mixed,
}


def take(workload: Workload, blocks: int) -> list[KvRequest]:
    """Requests that ask for so many blocks in all."""
    taken: list[KvRequest] = []
    for request in workload:
        blocks -= request.prompt_blocks
        if blocks < 0:
            break
        taken.append(request)
    return taken


@dataclass
class _Session:
    rng: random.Random
    start: Callable[[], tuple[list[BlockHash], int, str]]
    blocks: list[BlockHash]
    turns_left: int = 0
    name: str = ""

    def turn(self, at: float, grows: tuple[int, int]) -> KvRequest:
        if not self.turns_left:
            self.blocks, self.turns_left, self.name = self.start()
        self.turns_left -= 1
        asked = len(self.blocks) + grows[0]
        self.blocks = [*self.blocks, *_blocks(f"{self.name}.{len(self.blocks)}", sum(grows))]
        return KvRequest(at, self.blocks, asked)


def _sessions(
    seed: int,
    *,
    sessions: int,
    prefixes: Sequence[tuple[str, int]],
    turns: Callable[[random.Random], int],
    pause: Callable[[random.Random], float],
    grows: tuple[int, int],
) -> Workload:
    """Sessions side by side; each begins with one of the prefixes (zipf) and grows turn by turn."""
    rng = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(prefixes) + 1)]
    names = (f"c{seed}.{number}" for number in range(1 << 40))

    def start() -> tuple[list[BlockHash], int, str]:
        ((prefix, length),) = rng.choices(prefixes, weights)
        return _blocks(prefix, length), turns(rng), next(names)

    running = [_Session(rng, start, []) for _ in range(sessions)]
    due = [(pause(rng), number) for number in range(sessions)]
    heapify(due)
    while True:
        at, number = due[0]
        yield running[number].turn(at, grows)
        heapreplace(due, (at + pause(rng), number))


def _blocks(name: str, count: int) -> list[BlockHash]:
    return [BlockHash(f"{name}/{number}".encode()) for number in islice(range(count), count)]
