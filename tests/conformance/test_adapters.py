"""LoRA adapters on a pair of real engines with two slots: whose answer a request gets, and whose KV.

Markers say one token whatever the prompt, so that a leak shows whose it is. Their prompts have the base's KV;
random adapters of all modules have KV of their own.
"""

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from llmserve.core.adapters import BASE_MODEL, AdapterTier, LoraShape
from llmserve.core.blocks import chain_hashes
from llmserve.core.errors import AdapterUnavailable, InvalidRequest
from llmserve.core.ids import AdapterDigest
from llmserve.core.request import FinishReason, WorkerRole
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.worker import AdapterMetrics
from llmserve.workers.adapters.build import build_adapters
from tests.conformance.conftest import VllmKit
from tests.conformance.engine_pair import SALT, Harness, Pair, Push, ended, tokens
from tests.support.adapter_pool import FakeStore
from tests.support.adapters import (
    SPOILERS,
    AdapterShape,
    marker_adapter,
    marker_basis,
    random_adapter,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.real_vllm,
    pytest.mark.timeout(600),
]

LORA = LoraShape(slots=2, max_rank=8, target_modules=tuple(AdapterShape().modules))
WORDS = ("green", "blue", "seven", "water")
SEEDS = (
    0,
    2,
)  # of adapters whose answers to the second text differ, with margins of 0.1 or more in each step
TEXTS = (
    "The capital of France is",
    "Once upon a time there was a small dog that lived in a house near the river. One day the dog",
    "def add(a, b):\n    return",
)


@dataclass(frozen=True)
class Files:
    """markers: the token that each says."""

    markers: dict[AdapterDigest, int]
    random: tuple[AdapterDigest, AdapterDigest]
    folder: Path
    model_dir: Path

    def __getitem__(self, digest: AdapterDigest) -> Path:
        return self.folder / digest


def _digest(name: str) -> AdapterDigest:
    return AdapterDigest(hashlib.sha256(name.encode()).hexdigest())


@pytest.fixture(scope="module")
def encode(vllm_kit: VllmKit) -> Callable[[str], list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(vllm_kit.model_dir)
    return lambda text: list(tokenizer.encode(text))


@pytest.fixture(scope="module")
def prompts(encode: Callable[[str], list[int]]) -> list[list[int]]:
    return [encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def files(
    vllm_kit: VllmKit, encode: Callable[[str], list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Files:
    folder, model_dir = tmp_path_factory.mktemp("adapters"), vllm_kit.model_dir
    basis = marker_basis(model_dir)
    markers = {_digest(word): encode(f" {word}")[0] for word in WORDS}
    for digest, token in markers.items():
        marker_adapter(folder / digest, basis, token)
    red, blue = (_digest(f"random {seed}") for seed in SEEDS)
    for seed, digest in zip(SEEDS, (red, blue), strict=True):
        random_adapter(folder / digest, model_dir, seed, AdapterShape(alpha=32.0))
    return Files(markers, (red, blue), folder, model_dir)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(vllm_kit: VllmKit) -> AsyncIterator[Pair]:
    prefill = await Harness.open(vllm_kit.make(WorkerRole.PREFILL, "lora-prefill", lora=LORA), 10.0)
    try:
        decode = await Harness.open(vllm_kit.make(WorkerRole.DECODE, "lora-decode", lora=LORA), 10.0)
    except BaseException:
        await prefill.close()
        raise
    yield Pair(prefill, decode)
    await asyncio.gather(prefill.close(), decode.close())


@pytest_asyncio.fixture(loop_scope="module")
async def pair(engines: Pair, files: Files) -> AsyncIterator[Pair]:
    """Engines whose slots are empty before and after each test."""
    yield engines
    for harness in (engines.prefill, engines.decode):
        await harness.empty()
        for digest in [*files.markers, *files.random]:
            await harness.engine.unload_adapter(digest, forget_blocks=True)


async def _answer(
    harness: Harness, prompt: Sequence[int], adapter: AdapterDigest, most: int = 8
) -> list[int]:
    return tokens(await harness.run(prompt, most, adapter=adapter))


async def test_an_engine_says_what_adapters_it_runs(pair: Pair) -> None:
    assert pair.prefill.info.lora == pair.decode.info.lora == LORA


async def test_rows_of_the_base_and_of_adapters_do_not_mix_in_a_batch(
    pair: Pair, files: Files, prompts: list[list[int]]
) -> None:
    """Slots are filled one after another and used again, so that every order of rows and slots comes up."""
    engine = pair.decode
    alone = [await _answer(engine, prompt, BASE_MODEL) for prompt in prompts]
    assert all(token not in files.markers.values() for answer in alone for token in answer)
    one, *others = files.markers
    await engine.engine.load_adapter(one, files[one])
    for other in others:
        await engine.engine.load_adapter(other, files[other])
        asked = [(digest, prompt) for digest in (BASE_MODEL, one, other) for prompt in prompts]
        got = await asyncio.gather(*(_answer(engine, prompt, digest) for digest, prompt in asked))
        assert got[:3] == alone, "the base model's"
        assert got[3:6] == [[files.markers[one]] * 8] * 3
        assert got[6:9] == [[files.markers[other]] * 8] * 3
        await engine.engine.unload_adapter(other)
        with pytest.raises(AdapterUnavailable, match="not loaded"):
            await engine.add(prompts[0], adapter=other)
        assert await _answer(engine, prompts[0], BASE_MODEL) == alone[0], "beside an adapter that is gone"


async def test_what_is_loaded_needs_no_files(
    pair: Pair, files: Files, prompts: list[list[int]], tmp_path: Path
) -> None:
    digest, token = next(iter(files.markers.items()))
    copy = shutil.copytree(files[digest], tmp_path / "copy")
    await pair.decode.engine.load_adapter(digest, copy)
    shutil.rmtree(copy)
    for _ in range(2):
        assert await _answer(pair.decode, prompts[0], digest) == [token] * 8


async def test_more_than_there_are_slots_are_refused_and_the_others_go_on(
    pair: Pair, files: Files, prompts: list[list[int]]
) -> None:
    one, two, three, _ = files.markers
    running = []
    for digest in (one, two):
        await pair.decode.engine.load_adapter(digest, files[digest])
        await pair.decode.engine.load_adapter(digest, files[digest])  # changes nothing
        running.append(await pair.decode.add(prompts[0], 40, adapter=digest))
    with pytest.raises(InvalidRequest, match="all 2 slots are taken"):
        await pair.decode.engine.load_adapter(three, files[three])
    for request_id, digest in zip(running, (one, two), strict=True):
        assert tokens(await pair.decode.result(request_id)) == [files.markers[digest]] * 40


async def test_a_load_goes_on_when_nobody_waits_for_it_any_more(
    pair: Pair, files: Files, prompts: list[list[int]]
) -> None:
    digest, token = next(iter(files.markers.items()))
    loading = asyncio.ensure_future(pair.decode.engine.load_adapter(digest, files[digest]))
    await asyncio.sleep(0)
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    await pair.decode.engine.load_adapter(digest, files[digest])
    assert await _answer(pair.decode, prompts[0], digest) == [token] * 8


@pytest.mark.parametrize("wrong", ["nothing there", "rank", "missing tensor", "other base", "truncated"])
async def test_an_adapter_that_cannot_be_loaded_costs_nothing_else(
    pair: Pair, files: Files, prompts: list[list[int]], tmp_path: Path, wrong: str
) -> None:
    engine, digest = pair.decode.engine, _digest(wrong)
    rank = 16 if wrong == "rank" else 8
    if wrong != "nothing there":
        random_adapter(tmp_path / digest, files.model_dir, 3, replace(AdapterShape(), rank=rank))
    if wrong in SPOILERS:
        SPOILERS[wrong](tmp_path / digest)
    one, two, *_ = files.markers
    await engine.load_adapter(one, files[one])
    with pytest.raises(InvalidRequest, match="cannot be loaded"):
        await engine.load_adapter(digest, tmp_path / digest)
    with pytest.raises(AdapterUnavailable, match="not loaded"):
        await pair.decode.add(prompts[0], adapter=digest)
    await engine.load_adapter(two, files[two])  # the slot is free
    for marker in (one, two):
        assert await _answer(pair.decode, prompts[0], marker) == [files.markers[marker]] * 8


async def test_numbers_that_are_none_harm_nobody_else(
    pair: Pair, files: Files, prompts: list[list[int]], tmp_path: Path
) -> None:
    """LLMServe checks adapters before they are loaded; this is what an engine does with one all the same."""
    alone = await _answer(pair.decode, prompts[1], BASE_MODEL)
    wrong = _digest("nan")
    random_adapter(tmp_path / wrong, files.model_dir, 3)
    SPOILERS["nan"](tmp_path / wrong)
    await pair.decode.engine.load_adapter(wrong, tmp_path / wrong)
    asked = (pair.decode.run(prompts[1], 8, adapter=digest) for digest in (BASE_MODEL, wrong, BASE_MODEL))
    base, broken, again = await asyncio.gather(*asked)
    assert tokens(base) == tokens(again) == alone
    assert ended(broken) is FinishReason.LENGTH
    await pair.decode.engine.unload_adapter(wrong, forget_blocks=True)
    assert await _answer(pair.decode, prompts[1], BASE_MODEL) == alone


async def test_kv_is_handed_over_and_goes_on_with_the_adapter(
    pair: Pair, files: Files, prompts: list[list[int]]
) -> None:
    """Two adapters and the base at once, by pull and by push, with a prompt of several blocks."""
    prompt = prompts[1] * 12
    versions = (BASE_MODEL, *files.random)
    for harness in (pair.prefill, pair.decode):
        for digest in files.random:
            await harness.engine.load_adapter(digest, files[digest])
    alone = [await _answer(pair.prefill, prompt, digest) for digest in versions]
    assert len({tuple(answer) for answer in alone}) == 3, "adapters change the answer"

    pulled = await asyncio.gather(*(pair.continued(prompt, 8, adapter=digest) for digest in versions))
    pushes = [await Push.start(pair, prompt, 7, adapter=digest, salt=SALT[::-1]) for digest in versions]
    pushed = await asyncio.gather(*(push.finish() for push in pushes))
    for way in (pulled, pushed):
        assert [first + tokens(outputs) for first, outputs in way] == alone
        stats = [outputs[0].prefill_stats for _, outputs in way]
        assert all(one is not None and one.external_cached_tokens > 0 for one in stats)


async def test_a_prefix_is_shared_within_an_adapter_and_never_across(
    pair: Pair, files: Files, prompts: list[list[int]]
) -> None:
    prompt = prompts[2] * 40
    full = len(prompt) // pair.decode.info.block_size_tokens
    size = pair.decode.info.block_size_tokens
    versions = (BASE_MODEL, *files.random)
    red, blue = files.random

    async def cached(digest: AdapterDigest) -> int:
        (output, *_) = await pair.decode.run(prompt, 2, adapter=digest)
        assert output.prefill_stats is not None
        return output.prefill_stats.local_cached_tokens

    def resident(digest: AdapterDigest) -> bool:
        return set(chain_hashes(prompt, size, SALT, digest)) <= pair.decode.resident

    for digest in files.random:
        await pair.decode.engine.load_adapter(digest, files[digest])
    assert [await cached(digest) for digest in versions] == [0, 0, 0]
    assert [await cached(digest) for digest in versions] == [full * size] * 3
    await pair.decode.until(lambda: all(resident(digest) for digest in versions))

    await pair.decode.engine.unload_adapter(red)
    await pair.decode.engine.unload_adapter(red, forget_blocks=True)  # of one that has no slot any more
    gone = set(chain_hashes(prompt, size, SALT, red))
    await pair.decode.until(lambda: not gone & pair.decode.resident)
    assert resident(BASE_MODEL)
    assert resident(blue)
    await pair.decode.engine.load_adapter(red, files[red])
    assert [await cached(digest) for digest in versions] == [full * size, 0, full * size]


async def test_a_workers_pool_runs_more_adapters_than_slots(
    pair: Pair, files: Files, prompts: list[list[int]]
) -> None:
    """Four adapters and the base over two slots, 40 requests in disorder, no more than eight at once."""
    engine, at_once = pair.decode, asyncio.Semaphore(8)
    alone = [await _answer(engine, prompt, BASE_MODEL) for prompt in prompts]
    tasks, metrics = TaskOwner("pool"), AdapterMetrics(CollectorRegistry())
    adapters = build_adapters(
        engine.engine, LORA.slots, FakeStore(files.folder), tasks, metrics, lambda: None
    )
    for digest in files.markers:
        adapters.pool.serve(digest, f"dir:/{digest}", AdapterTier.SOURCE)

    async def ask(digest: AdapterDigest, number: int) -> None:
        async with at_once, AsyncExitStack() as held:
            if digest:
                await held.enter_async_context(adapters.pool.hold(digest))
            wanted = [files.markers[digest]] * 8 if digest else alone[number]
            assert await _answer(engine, prompts[number], digest) == wanted

    versions = (BASE_MODEL, *files.markers)
    try:
        await asyncio.gather(*(ask(versions[i * 7 % 5], i * 3 % 8 % 3) for i in range(40)))
        await asyncio.gather(*(adapters.pool.let_go(digest) for digest in files.markers))
        assert adapters.pool.legs() == {}
    finally:
        adapters.pool.close()
        await tasks.aclose()
        await adapters.files.aclose()
