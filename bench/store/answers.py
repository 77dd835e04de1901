"""What quantizing in DRAM does to answers: each prompt is computed, asked again while the engine's own cache
has it, and asked again when its blocks come from the store.

The second answer is what the third is compared with: both compute only what the blocks leave, so with blocks
as they are every answer is equal, or the store brings wrong bytes. (The first is computed in another order of
sums, and differs by itself: that share is the noise.)
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from bench.store.engine import Asker, engine, store_connector
from bench.store.manager import Manager, dram
from bench.table import Figure, markdown

PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 6, 600, 32
_SOURCES = ("docs/*.md",)
_DRAM_GIB = 0.5


@dataclass(slots=True)
class AnswerDrift:
    """computed, loaded: how many tokens of each answer, before the first other one, are those of the answer
    with the engine's own cache."""

    grid: str
    computed: list[int] = field(default_factory=list)
    loaded: list[int] = field(default_factory=list)
    loaded_tokens: list[int] = field(default_factory=list)

    def cells(self) -> tuple[object, ...]:
        figure = Figure.of([float(tokens) for tokens in self.loaded])
        least = min(self.loaded_tokens)
        return self.grid, _equal(self.computed), _equal(self.loaded), figure.text(0), least


def _equal(tokens: Sequence[int]) -> str:
    return f"{sum(one == ANSWER_TOKENS for one in tokens)} of {len(tokens)}"


async def run(model: Path, kvmanager: Manager, grids: Sequence[str]) -> str:
    """Errors: AssertionError when an answer from blocks that are not quantized is another one."""
    prompts, rows = _prompts(model), []
    for grid in grids:
        kvmanager.start([dram(_DRAM_GIB) | {"format": {"quantize": grid}}])
        async with engine(model, store_connector(kvmanager.endpoint, grid)) as asker:
            rows.append(await _drift(asker, grid, prompts))
        print(*rows[-1].cells(), file=sys.stderr, flush=True)
        kvmanager.stop()
        assert grid != "none" or set(rows[-1].loaded) == {ANSWER_TOKENS}, rows[-1]
    headings = ("`quantize`", "computed anew: equal", "from the store: equal", "equal tokens", "least loaded")
    return markdown(headings, [row.cells() for row in rows])


async def _drift(asker: Asker, grid: str, prompts: Sequence[Sequence[int]]) -> AnswerDrift:
    drift = AnswerDrift(grid)
    await asker.ask(prompts[0][: PROMPT_TOKENS // 2], 1)  # the link attaches
    await asker.forget()
    for prompt in prompts:
        computed = await asker.ask(prompt, ANSWER_TOKENS)
        cached = await asker.ask(prompt, ANSWER_TOKENS)
        await asker.forget()
        loaded = await asker.ask(prompt, ANSWER_TOKENS)
        assert loaded.cached_tokens == cached.cached_tokens, "the store had not all of the prompt"
        drift.computed.append(_alike(computed.token_ids, cached.token_ids))
        drift.loaded.append(_alike(loaded.token_ids, cached.token_ids))
        drift.loaded_tokens.append(loaded.cached_tokens)
        await asker.forget()
    return drift


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=True)))


def _prompts(model: Path) -> list[list[int]]:
    """Texts of this repository."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [path.read_text() for pattern in _SOURCES for path in sorted(Path().glob(pattern))]
    tokens = [tokenizer(text[: 8 * PROMPT_TOKENS]).input_ids for text in texts]
    return [found[:PROMPT_TOKENS] for found in tokens if len(found) >= PROMPT_TOKENS][:PROMPTS]
