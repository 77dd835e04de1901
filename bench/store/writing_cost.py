"""What storing costs: throughput of prompts never seen before, with the store and without, in turns."""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

from bench.store.engine import TENANT, Asker
from bench.store.manager import BLOCK_BYTES, Manager
from bench.table import Figure, markdown

PROMPT_TOKENS, OUTPUT_TOKENS = 500, 16
PROMPTS, AT_ONCE = 6, 3
TURNS = 3
_WITHOUT_STORE = ""


async def rows(
    asker: Asker,
    kvmanager: Manager,
    roomy: Sequence[dict[str, Any]],
    small: Sequence[dict[str, Any]],
) -> list[tuple[object, ...]]:
    """roomy, small: storage classes. The small ones are filled to their bounds first."""
    result = []
    for what, classes, is_full in (("with room", roomy, False), ("every tier full", small, True)):
        kvmanager.start(classes)
        if is_full:
            kvmanager.fill(2 * sum(int(one["capacity_gb"] * 2**30) for one in classes) // BLOCK_BYTES)
        await _throughput(asker, TENANT)  # attaches
        pairs = [await _pair(asker, turn) for turn in range(TURNS)]
        result.append(_row(what, pairs))
        kvmanager.stop()
    return result


def table(rows: Sequence[Sequence[object]]) -> str:
    return markdown(("store", "prompt tokens/s without", "with", "ratio (in turns)", "goal"), rows)


async def _pair(asker: Asker, turn: int) -> tuple[float, float]:
    """Without and with; who is first changes."""
    if turn % 2:
        ours = await _throughput(asker, TENANT)
        return await _throughput(asker, _WITHOUT_STORE), ours
    return await _throughput(asker, _WITHOUT_STORE), await _throughput(asker, TENANT)


async def _throughput(asker: Asker, tenant: str) -> float:
    """Prompt tokens a second."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with room:
            prompt = [random.randrange(1000, 40_000) for _ in range(PROMPT_TOKENS)]
            await asker.ask(prompt, OUTPUT_TOKENS, tenant)

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(PROMPTS)))
    return PROMPTS * PROMPT_TOKENS / (time.perf_counter() - started)


def _row(what: str, pairs: Sequence[tuple[float, float]]) -> tuple[object, ...]:
    without, ours = (Figure.of([pair[side] for pair in pairs]) for side in (0, 1))
    ratio = Figure.of([ours / without for without, ours in pairs])
    return what, without.text(0), ours.text(0), ratio.text(), "0.97"
