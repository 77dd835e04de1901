"""A model with several KV cache groups, and engines with several ranks, on real vLLM: whatever brings the KV,
the tokens are those of the model alone.

Three engines hand a tiny model's KV over: prefill and decode have one rank, wide has two. All have a store.
A fault plan breaks transfers all the time: whoever is not pulled over one transport comes over the next.
"""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from bench.ports import free_port
from llmserve.core.blocks import chain_hashes
from llmserve.core.kv_params import PullParams
from llmserve.core.process import descendants, read_effort
from llmserve.core.request import EngineOutput
from llmserve.engines.kv_transfer import release_lease
from tests.conformance.engine_pair import HAND_OVER, Harness, Pair, Push, numbers, tokens
from tests.conformance.tiny_cluster import BLOCK, Engines, Manager, started
from tests.support.tiny_hybrid import VOCAB, WINDOW_TOKENS, greedy_answers, make_tiny_hybrid

pytestmark = [
    pytest.mark.real_vllm,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

ANSWER = 6
# Below, at and beyond the window of 128 tokens, and at the ends of blocks of 32.
LENGTHS = (
    *(5, 31, 32, 33, 96, 97, 126, 127, 128, 129, 130, 159, 160, 161, 191),
    *(192, 193, 223, 255, 256, 257, 287, 288, 319, 320, 400, 511, 512, 600, 700),
)
TENANT = {"tenant": "red"}

_rng = random.Random(5)
PROMPTS = {length: [_rng.randrange(3, VOCAB) for _ in range(length)] for length in LENGTHS}
STORED = (255, 320, 400, 512, 700)
# All of the group that sees all, and the window's at the end of each prompt in the two others.
STORED_BLOCKS = sum(length // BLOCK for length in STORED) + len(STORED) * 2 * (WINDOW_TOKENS // BLOCK)

Answers = dict[int, list[int]]  # by the length of the prompt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_hybrid(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def alone(model: Path) -> Answers:
    answers = greedy_answers(model, list(PROMPTS.values()), ANSWER)
    assert len(set(map(tuple, answers))) == len(LENGTHS), "each prompt has an answer of its own"
    return dict(zip(LENGTHS, answers, strict=True))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def managers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Manager, Manager]]:
    """The first runs. prefill is attached to it, and the other engines wait for the second one."""
    disk = tmp_path_factory.mktemp("disk")
    made = Manager(disk, free_port()), Manager(disk, free_port())
    await made[0].start()
    yield made
    for manager in made:
        await manager.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(model: Path, managers: tuple[Manager, Manager], alone: Answers) -> AsyncIterator[Engines]:
    async with started(model, *managers) as engines:
        yield engines


@pytest_asyncio.fixture(loop_scope="module")
async def empty(engines: Engines) -> AsyncIterator[None]:
    """Each test leaves the engines empty."""
    yield
    for harness in (engines.prefill, engines.decode, engines.wide):
        await harness.empty()


def _salt() -> str:
    """No KV in common with what was asked before."""
    return f"{next(numbers):032x}"


def _external(outputs: Sequence[EngineOutput]) -> int:
    """Tokens of the prompt that were brought."""
    assert outputs[0].prefill_stats is not None
    return outputs[0].prefill_stats.external_cached_tokens


async def _until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the state of other threads
            await asyncio.sleep(0.02)


# -- the store


async def _ask(harness: Harness, lengths: Iterable[int], salt: str) -> dict[int, list[EngineOutput]]:
    """As requests that the store may serve."""
    lengths = list(lengths)
    asked = (harness.run(PROMPTS[length], ANSWER, kv=TENANT, salt=salt) for length in lengths)
    return dict(zip(lengths, await asyncio.gather(*asked), strict=True))


def _found(answers: dict[int, list[EngineOutput]]) -> bool:
    """Whether all of the prompts was loaded: whole blocks, and not the last token, which is computed."""
    return all(_external(answer) >= (n - 1) // BLOCK * BLOCK for n, answer in answers.items())


@pytest.mark.usefixtures("empty")
async def test_engines_and_a_kv_manager_that_are_new_find_what_the_disk_holds(
    engines: Engines, managers: tuple[Manager, Manager], alone: Answers
) -> None:
    """The first test: what an engine has not yet learnt to compute quickly is worth a read."""
    salt, (first, second) = _salt(), managers
    answers = await _ask(engines.prefill, STORED, salt)
    assert {length: tokens(answer) for length, answer in answers.items()} == {n: alone[n] for n in STORED}
    await _until(lambda: first.stored_blocks() >= STORED_BLOCKS)
    await first.stop()
    await second.start()
    await _attached(second, 2)
    answers = await _ask(engines.decode, STORED, salt)
    assert {length: tokens(answer) for length, answer in answers.items()} == {n: alone[n] for n in STORED}
    assert _found(answers), {n: _external(answer) for n, answer in answers.items()}


async def _attached(manager: Manager, workers: int) -> None:
    assert manager.role is not None
    calls = manager.role._calls
    await _until(lambda: len(calls._parts) == workers)


@pytest.mark.usefixtures("empty")
async def test_two_ranks_find_what_they_have_stored(
    engines: Engines, managers: tuple[Manager, Manager], alone: Answers
) -> None:
    salt, (_, second) = _salt(), managers
    before = second.stored_blocks()
    answers = await _ask(engines.wide, STORED, salt)
    await _until(lambda: second.stored_blocks() >= before + STORED_BLOCKS)
    assert await engines.wide.engine._core.reset_prefix_cache_async()  # type: ignore[attr-defined]
    answers = await _ask(engines.wide, STORED, salt)
    assert {length: tokens(answer) for length, answer in answers.items()} == {n: alone[n] for n in STORED}
    assert _found(answers), {n: _external(answer) for n, answer in answers.items()}


# -- hand-over


WAYS = ("prefill to decode", "wide to decode", "prefill to wide")


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("way", WAYS)
async def test_pulled(engines: Engines, alone: Answers, way: str) -> None:
    pair, salt = engines.pair(way), _salt()
    answers = await asyncio.gather(
        *(pair.continued(prompt, ANSWER, salt=salt) for prompt in PROMPTS.values())
    )
    for length, (first, rest) in zip(LENGTHS, answers, strict=True):
        assert [*first, *tokens(rest)] == alone[length], length
        assert _external(rest) == length


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("way", ["prefill to decode", "wide to wide"])
async def test_pushed(engines: Engines, alone: Answers, way: str) -> None:
    """An engine may hand over to itself: so two ranks push to two. Others are not pushed to."""
    pair, salt = engines.pair(way), _salt()
    pushes = [await Push.start(pair, prompt, ANSWER - 1, salt=salt) for prompt in PROMPTS.values()]
    answers = await asyncio.gather(*(push.finish() for push in pushes))
    for length, (first, rest) in zip(LENGTHS, answers, strict=True):
        assert [*first, *tokens(rest)] == alone[length], length
        assert rest[0].handover is not None
        assert rest[0].handover.pushed
        assert _external(rest) >= length


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("way", WAYS)
async def test_decode_draws_the_first_token_again(engines: Engines, alone: Answers, way: str) -> None:
    """Where the window has left behind what the prompt's last token sees, decode computes the prompt."""
    pair, salt = engines.pair(way), _salt()

    async def answer(prompt: list[int]) -> list[EngineOutput]:
        (output,) = await pair.prefill.run(prompt, 1, kv=HAND_OVER, salt=salt)
        return await pair.decode.run(prompt, ANSWER, kv=output.kv_transfer_params, salt=salt)

    answers = await asyncio.gather(*map(answer, PROMPTS.values()))
    for length, outputs in zip(LENGTHS, answers, strict=True):
        is_behind = length >= WINDOW_TOKENS and (length - WINDOW_TOKENS + 1) % BLOCK == 0
        assert tokens(outputs) == alone[length], length
        assert bool(_external(outputs)) is not is_behind, length


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("way", WAYS)
async def test_a_prompt_whose_lease_has_ended_is_computed(engines: Engines, alone: Answers, way: str) -> None:
    pair, salt = engines.pair(way), _salt()
    (output,) = await pair.prefill.run(PROMPTS[700], 1, kv=HAND_OVER, salt=salt)
    params = output.kv_transfer_params
    await release_lease(PullParams.from_params(params or {}), 5.0)
    answer = await pair.decode.run(PROMPTS[700], ANSWER, kv=params, salt=salt)
    assert tokens(answer) == alone[700]
    assert _external(answer) == 0
    assert answer[0].handover is not None
    assert "lease" in answer[0].handover.reason


@pytest.mark.usefixtures("empty")
async def test_a_reader_that_needs_what_the_window_has_left_behind(engines: Engines, alone: Answers) -> None:
    """The owner has 700 tokens, of which the reader wants the first 400."""
    prompt, salt = PROMPTS[400], _salt()
    (output,) = await engines.prefill.run([*prompt, *PROMPTS[700][400:]], 1, kv=HAND_OVER, salt=salt)
    answer = await engines.decode.run(prompt, ANSWER, kv=output.kv_transfer_params, salt=salt)
    assert tokens(answer) == alone[400]
    assert _external(answer) == 0
    assert answer[0].handover is not None
    assert answer[0].handover.reason == "blocks 8 to 13 of the prompt are needed, 17 to 22 are there"


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("name", ["prefill", "wide"])
async def test_the_router_learns_of_every_block(engines: Engines, name: str) -> None:
    """Of the group that sees all, whatever the windows have left behind."""
    harness, salt = getattr(engines, name), _salt()
    await harness.run(PROMPTS[700], ANSWER, salt=salt)
    hashes = set(chain_hashes(PROMPTS[700], BLOCK, salt))
    await harness.until(lambda: hashes <= harness.resident, 10.0)


@pytest.mark.usefixtures("empty")
async def test_a_rank_that_is_stopped_hangs_its_engine(engines: Engines, alone: Answers) -> None:
    """As long as one process of an engine is stopped, the engine does not answer, even if nothing runs on it.
    It goes on where it was."""
    wide = engines.wide.engine
    (core,) = wide._core.resources.engine_manager.processes  # type: ignore[attr-defined]
    rank = max(descendants(core.pid))  # the process that was started last
    os.kill(rank, signal.SIGSTOP)
    try:
        assert read_effort(wide.processes()).stopped
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await wide.ping()
        asked = await engines.wide.add(PROMPTS[320], ANSWER, salt=_salt())
    finally:
        os.kill(rank, signal.SIGCONT)
    await wide.ping()
    assert tokens(await engines.wide.result(asked)) == alone[320]


async def test_a_prefill_that_is_killed_midway(engines: Engines, alone: Answers) -> None:
    """The last test: prefill is gone. What decode has not got it computes."""
    pair, salt = Pair(engines.prefill, engines.decode), _salt()
    outputs = [await engines.prefill.run(PROMPTS[n], 1, kv=HAND_OVER, salt=salt) for n in (320, 400, 511)]
    pushes = [await Push.start(pair, PROMPTS[n], ANSWER, salt=salt, continues=False) for n in (512, 600, 700)]
    for push in pushes:
        await push.prefill()
    pulls = [
        await engines.decode.add(PROMPTS[n], ANSWER, kv=output.kv_transfer_params, salt=salt)
        for n, (output,) in zip((320, 400, 511), outputs, strict=True)
    ]
    _kill(engines.prefill)
    asked = [*pulls, *(push.decode_id for push in pushes)]
    for name, length in zip(asked, (320, 400, 511, 512, 600, 700), strict=True):
        assert tokens(await engines.decode.result(name)) == alone[length], length
    await engines.decode.empty()


def _kill(harness: Harness) -> None:
    (core,) = harness.engine._core.resources.engine_manager.processes  # type: ignore[attr-defined]
    for pid in (core.pid, *descendants(core.pid)):
        os.kill(pid, signal.SIGKILL)
