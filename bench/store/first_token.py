"""Time to first token of a prompt seen before, device cache cold: by where its blocks are."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.store.engine import Answer, Asker, engine, vllm_connector
from bench.store.manager import BLOCK_BYTES, Manager, dram, nvme, s3, written
from bench.table import Figure, markdown
from tests.support.seaweed import BUCKET, Seaweed

PROMPT_TOKENS = 1500
OUTPUT_TOKENS = 4
TURNS = 3
_DRAM_GIB = 0.5
_ONE_PROMPT_BLOCKS = 12  # a prompt's 11, and one


@dataclass(slots=True)
class Row:
    """recompute: of prompts never seen, in the same engine, in turns with the others."""

    what: str
    goal: str
    recompute: list[Answer] = field(default_factory=list)
    again: list[Answer] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)

    def add(self, recomputed: Answer, again: Answer, expected: Sequence[int]) -> None:
        """expected: the tokens of its answer with the device cache warm."""
        self.recompute.append(recomputed)
        self.again.append(again)
        self.same.append(list(expected) == again.token_ids)

    def cells(self) -> tuple[object, ...]:
        base, ours = (
            Figure.of([one.first_token_seconds for one in answers])
            for answers in (self.recompute, self.again)
        )
        loaded = min(one.cached_tokens for one in self.again)
        same = f"{sum(self.same)} of {len(self.same)}"
        ratio = f"{ours.median / base.median:.3f}"
        return self.what, base.text(2), ours.text(), ratio, self.goal, loaded, same


def table(rows: Sequence[Row]) -> str:
    headings = (
        "blocks are in",
        "recompute s",
        "seen before s",
        "ratio",
        "goal",
        "least tokens loaded",
        "same answer",
    )
    return markdown(headings, [row.cells() for row in rows])


async def ours(asker: Asker, kvmanager: Manager, scratch: Path, server: Seaweed) -> list[Row]:
    """Ends with the KV manager stopped."""
    from_dram = Row("DRAM", "0.15")
    from_nvme = Row("NVMe, KV manager restarted", "0.25")
    from_s3 = Row("S3 on loopback, KV manager restarted", "0.5")
    below = (
        (from_nvme, nvme(1, scratch / "nvme", "through"), scratch / "nvme"),
        (from_s3, s3(1, BUCKET, server.endpoint, "through"), scratch / "s3"),
    )
    for row, tier, files in below:
        kvmanager.start([dram(_DRAM_GIB), tier])
        prompts = await _stored(asker, from_dram)
        await written(files)
        kvmanager.stop()
        kvmanager.start([dram(_DRAM_GIB), tier])
        await _warm(asker)
        for prompt, answer in prompts:
            fresh = await asker.ask(_prompt(), OUTPUT_TOKENS)
            await asker.forget()
            row.add(fresh, await asker.ask(prompt, OUTPUT_TOKENS), answer.token_ids)
        kvmanager.stop()
    return [from_dram, from_nvme, from_s3]


async def vllms(model: Path, scratch: Path) -> list[Row]:
    """Two engines, one after the other."""
    in_memory = Row("vLLM: CPU memory", "")
    connector = vllm_connector("HostCpuSpec", cpu_bytes_to_use=1 << 30)
    async with engine(model, connector) as asker:
        await _stored(asker, in_memory)
    in_files = Row("vLLM: `fs` tier", "")
    room = _ONE_PROMPT_BLOCKS * BLOCK_BYTES
    tier = {"type": "fs", "root_dir": str(scratch / "fs")}
    async with engine(
        model, vllm_connector("HostTieringSpec", cpu_bytes_to_use=room, secondary_tiers=[tier])
    ) as asker:
        await _stored_in_files(asker, in_files)
    return [in_memory, in_files]


async def _stored(asker: Asker, row: Row) -> list[tuple[list[int], Answer]]:
    """Prompts and the answers they have with the device cache warm; each is computed, and then loaded. (What
    is computed whole may answer otherwise: sums of another order.)"""
    await _warm(asker)
    known = []
    for _ in range(TURNS):
        prompt = _prompt()
        first = await asker.ask(prompt, OUTPUT_TOKENS)
        expected = await asker.ask(prompt, OUTPUT_TOKENS)
        await asker.forget()
        row.add(first, await asker.ask(prompt, OUTPUT_TOKENS), expected.token_ids)
        await asker.forget()
        known.append((prompt, expected))
    return known


async def _stored_in_files(asker: Asker, row: Row) -> None:
    """CPU memory has room for one prompt: each pushes out the one before."""
    await _warm(asker)
    before = _prompt()
    await asker.ask(before, OUTPUT_TOKENS)
    expected = await asker.ask(before, OUTPUT_TOKENS)
    for _ in range(TURNS):
        prompt = _prompt()
        first = await asker.ask(prompt, OUTPUT_TOKENS)
        answer = await asker.ask(prompt, OUTPUT_TOKENS)
        await asker.forget()
        row.add(first, await asker.ask(before, OUTPUT_TOKENS), expected.token_ids)
        await asker.forget()
        before, expected = prompt, answer


async def _warm(asker: Asker) -> None:
    """The first use of anything is slower; after a restart of the KV manager the first is a miss."""
    for _ in range(2):
        await asker.ask(_prompt(300), OUTPUT_TOKENS)
    await asker.forget()


def _prompt(tokens: int = PROMPT_TOKENS) -> list[int]:
    return [random.randrange(1000, 40_000) for _ in range(tokens)]
