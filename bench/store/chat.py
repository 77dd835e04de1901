"""Chat of many users over a device cache that holds few: how much of what was computed is computed again.

Each turn's prompt is all that was said before, and something new. Half way the engine and the KV manager
are stopped and started; what DRAM held is lost then.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.store.engine import Asker, engine, store_connector
from bench.store.manager import BLOCK_BYTES, Manager, dram, nvme, written
from bench.table import markdown

USERS, TURNS = 20, 6
FIRST_TOKENS, MORE_TOKENS, OUTPUT_TOKENS = (250, 450), (60, 140), 8
AT_ONCE = 2
DEVICE_CONVERSATIONS = 3
DRAM_CONVERSATIONS = 6
_BLOCK_TOKENS = 128


@dataclass(slots=True)
class User:
    said: list[int] = field(default_factory=list)

    async def turn(self, asker: Asker) -> "Turn":
        seen = len(self.said)
        self.said += _words(MORE_TOKENS if seen else FIRST_TOKENS)
        answer = await asker.ask(self.said, OUTPUT_TOKENS)
        prompt = len(self.said)
        self.said += answer.token_ids
        return Turn(prompt, seen, answer.cached_tokens, answer.first_token_seconds)


@dataclass(frozen=True, slots=True)
class Turn:
    """In tokens. seen: of the prompt, computed before."""

    prompt: int
    seen: int
    cached: int
    first_token_seconds: float

    @property
    def recomputed(self) -> int:
        return max(0, self.seen - self.cached)


async def run(model: Path, kvmanager: Manager, scratch: Path) -> str:
    longest = FIRST_TOKENS[1] + (TURNS - 1) * (MORE_TOKENS[1] + OUTPUT_TOKENS)
    blocks = -(-longest // _BLOCK_TOKENS)
    classes = [
        dram(DRAM_CONVERSATIONS * blocks * BLOCK_BYTES / 2**30),
        nvme(2, scratch / "chat"),
    ]
    users = [User() for _ in range(USERS)]
    turns: list[list[Turn]] = []
    for rounds in (range(TURNS // 2), range(TURNS // 2, TURNS)):
        kvmanager.start(classes)
        connector = store_connector(kvmanager.endpoint)
        async with engine(model, connector, gpu_blocks=1 + DEVICE_CONVERSATIONS * blocks) as asker:
            turns += [await _round(asker, users) for _ in rounds]
        await written(scratch / "chat")
        kvmanager.stop()
    rows = [_row(str(number + 1), one) for number, one in enumerate(turns)]
    everything = [turn for one in turns for turn in one]
    headings = ("turn", "prompt tokens", "seen before", "computed again", "share of the prompt tokens")
    return markdown(headings, [*rows, _row("all", everything)])


async def _round(asker: Asker, users: Sequence[User]) -> list[Turn]:
    """One turn of each, in any order."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(user: User) -> Turn:
        async with room:
            return await user.turn(asker)

    return await asyncio.gather(*map(one, random.sample(users, len(users))))


def _row(name: str, turns: Sequence[Turn]) -> tuple[object, ...]:
    prompt, seen, again = (
        sum(getattr(turn, what) for turn in turns) for what in ("prompt", "seen", "recomputed")
    )
    return name, prompt, seen, again, f"{again / prompt:.1%}"


def _words(span: tuple[int, int]) -> list[int]:
    return [random.randrange(1000, 40_000) for _ in range(random.randint(*span))]
