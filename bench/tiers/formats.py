"""What the formats of stored KV blocks save and cost, and what quantization does to a model's answers.

Blocks and answers are those of the model of llmserve.yaml (formats_model.py). Speeds are of one core, in
bytes of the block as the engine holds it, by the CPU time of the thread: others' work counts less so. What
two threads gain depends on whether a second core is free: the first row says what it was for a hash that
never holds the GIL.
"""

import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from bench.table import Figure, markdown
from bench.tiers.formats_model import Drift, Model
from llmserve.kvstore.formats import (
    BlockCodec,
    BlockFormat,
    BlockShape,
    Compress,
    Element,
    KeyRing,
    Quantize,
    grouped,
)

_ROUNDS = 3
_THREAD_ROUNDS = 7
_TIMED_BLOCKS = 8  # 24 MiB: more than stays in a cache
_KEYS = KeyRing([("bench", bytes(32))])
_FORMATS = tuple(BlockFormat(*stages) for stages in itertools.product(Quantize, Compress, (False, True)))

Block = npt.NDArray[np.uint8]


def run() -> str:
    model = Model.of_manifest()
    runs = [model.run(prompt) for prompt in model.prompts()]
    blocks = [block for finished in runs for block in finished.blocks]
    errors = [("same KV, one token at a time", [finished.noise() for finished in runs])]
    for name, shape, grid in _lossy(model.shape):
        codec = BlockCodec(shape, BlockFormat(grid))
        errors.append((name, [model.drift(finished, codec) for finished in runs]))
    tokens = sum(finished.prompt_tokens for finished in runs)
    return "\n\n".join(
        (
            f"{len(blocks)} blocks of {model.shape.size_bytes} bytes: `{model.shape.text()}`",
            _speeds(model.shape, blocks[:: len(blocks) // _TIMED_BLOCKS]),
            f"{len(runs)} prompts, {tokens} tokens in all; {model.answer_tokens} tokens answered to each",
            _errors(errors),
        )
    )


def _lossy(shape: BlockShape) -> list[tuple[str, BlockShape, Quantize]]:
    unknown = grouped(Element.BFLOAT16, shape.size_bytes)
    shapes = (("by channel", shape), ("by 64 neighbours", unknown))
    grids = (Quantize.INT8, Quantize.FP8)
    return [
        (f"{grid}, scales {name}", found, grid) for grid, (name, found) in itertools.product(grids, shapes)
    ]


# -- speed


def _speeds(shape: BlockShape, blocks: Sequence[Block]) -> str:
    rows = [_memcpy_row(blocks), *(_speed_row(shape, form, blocks) for form in _FORMATS)]
    return markdown(("format", "stored", "encode GB/s", "decode GB/s", "encode, 2 threads"), rows)


def _memcpy_row(blocks: Sequence[Block]) -> tuple[str, ...]:
    out = np.empty_like(blocks[0])
    copied = _rates(blocks, lambda number: np.copyto(out, blocks[number]))
    control = _two_threads(lambda: [hashlib.sha256(block.data).digest() for block in blocks])
    return "memcpy (threads: sha256)", "1.000", copied.text(2), copied.text(2), f"{control:.2f}x"


def _speed_row(shape: BlockShape, form: BlockFormat, blocks: Sequence[Block]) -> tuple[str, ...]:
    codec, back = BlockCodec(shape, form, _KEYS), np.empty_like(blocks[0])
    room = [memoryview(bytearray(codec.bound_bytes)) for _ in blocks]

    def encode(number: int) -> None:
        codec.encode(b"key", blocks[number].data, room[number])

    stored = [codec.encode(b"key", block.data, out) for block, out in zip(blocks, room, strict=True)]

    def decode(number: int) -> None:
        codec.decode(b"key", stored[number].header, stored[number].payload, back.data)

    size = sum(len(kept.header) + len(kept.payload) for kept in stored) / sum(
        block.nbytes for block in blocks
    )
    decoded = _rates(blocks, decode)
    encoded = _rates(blocks, encode)
    return _name(form), f"{size:.3f}", encoded.text(2), decoded.text(2), f"{_gain(shape, form, blocks):.2f}x"


def _name(form: BlockFormat) -> str:
    stages = [stage for stage in (form.quantize, form.compress) if stage != "none"]
    return " + ".join([*stages, *["AES"] * form.encrypt]) or "raw"


def _rates(blocks: Sequence[Block], work: Callable[[int], object]) -> Figure:
    """GB/s of a round over all blocks."""
    rates = []
    for _ in range(_ROUNDS + 1):
        started = time.thread_time()
        for number in range(len(blocks)):
            work(number)
        rates.append(sum(block.nbytes for block in blocks) / (time.thread_time() - started) / 1e9)
    return Figure.of(rates[1:])  # the first one warms


def _gain(shape: BlockShape, form: BlockFormat, blocks: Sequence[Block]) -> float:
    def work() -> None:
        codec = BlockCodec(shape, form, _KEYS)
        room = memoryview(bytearray(codec.bound_bytes))
        for block in blocks:
            codec.encode(b"key", block.data, room)

    return _two_threads(work)


def _two_threads(work: Callable[[], object]) -> float:
    """How much more two threads do in a second than one."""
    with ThreadPoolExecutor(2) as pool:
        pairs = [(_seconds(pool, work, 1), _seconds(pool, work, 2)) for _ in range(_THREAD_ROUNDS)]
    alone, together = np.median(pairs, axis=0)
    return float(2 * alone / together)


def _seconds(pool: ThreadPoolExecutor, work: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for done in [pool.submit(work) for _ in range(count)]:
        done.result()
    return time.perf_counter() - started


# -- errors


def _errors(measured: Sequence[tuple[str, Sequence[Drift]]]) -> str:
    return markdown(
        (
            "KV of the prompt",
            "KV error (rms, relative)",
            "logit error mean",
            "logit error max",
            "same token",
            "answers equal to the end",
        ),
        [_error_row(name, drifts) for name, drifts in measured],
    )


def _error_row(name: str, drifts: Sequence[Drift]) -> tuple[str, ...]:
    count = len(drifts)
    return (
        name,
        f"{np.mean([drift.kv_error for drift in drifts]):.4f}",
        f"{np.mean([drift.logit_mean for drift in drifts]):.3f}",
        f"{max(drift.logit_max for drift in drifts):.2f}",
        f"{100 * np.mean([drift.agreement for drift in drifts]):.1f}%",
        f"{sum(drift.agreement == 1 for drift in drifts)} of {count}",
    )
