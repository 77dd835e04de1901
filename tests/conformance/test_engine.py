"""What every engine promises (engines/base.py), on a pair of engines that hand KV over.

An EngineKit says how engines of a kind are made; the suite needs nothing else of them than the
Engine contract, prompts of token ids and EngineRequest.limits (greedy sampling). The simulated
engine runs always, vLLM with `-m real_vllm`. The engines live as long as the module, so that the
suite can afford real ones; a fixture checks that each test leaves them empty.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Protocol

import pytest
import pytest_asyncio

from llmserve.config.schema import EngineConfig, KvCacheConfig, SimSpec, Speculation, TransferConfig
from llmserve.core.blocks import chain_hashes
from llmserve.core.errors import EngineDead, InvalidRequest, ModelNotFound, StartFailed
from llmserve.core.ids import RequestId, TransferId, WorkerId
from llmserve.core.kv_params import PullParams, PushParams, prefill_params
from llmserve.core.process import read_effort
from llmserve.core.request import FinishReason, LeaseState, WorkerRole
from llmserve.engines.base import Engine
from llmserve.engines.kv_transfer import release_lease
from llmserve.engines.sim.engine import SimEngine
from llmserve.engines.sim.link import open_handover_link
from llmserve.engines.sim.step import RealStepTimer
from llmserve.engines.spec import EngineSpec
from tests.conformance.engine_pair import (
    HAND_OVER,
    SALT,
    Harness,
    Pair,
    Push,
    ended,
    finished,
    numbers,
    tokens,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

OTHER_SALT = SALT[::-1]  # no KV in common: what is computed from it is computed whole
LENGTHS = (1, 2, 15, 16, 17, 127, 128, 129, 500, 1500)
PIECE = 64  # tokens


class EngineKit(Protocol):
    """settle_seconds: how soon after a test its engines must be empty. prompt_vocab: prompt tokens
    are drawn below this number. other_block_size: tokens in a block, not those of `make` without it."""

    settle_seconds: float
    prompt_vocab: int
    other_block_size: int

    def make(
        self,
        role: WorkerRole,
        name: str,
        block_size_tokens: int | None = None,
        long_prompt_tokens: int | None = None,
    ) -> Engine:
        """Not started. Blocks for 6,000 tokens at least, a model length of 2,048 or more. long_prompt_tokens:
        so many of one prompt are computed in a step."""

    def make_broken(self) -> Engine:
        """One whose start raises StartFailed."""

    def seeded(self, max_tokens: int) -> bytes:
        """Returns the engine's own parameters of a request that samples so many tokens with a seed."""


class SimKit:
    """speculation: how its engines propose tokens; None: they do not."""

    settle_seconds = 2.0
    prompt_vocab = 30_000
    other_block_size = 24

    def __init__(self, speculation: Speculation | None = None) -> None:
        self._speculation = speculation

    def make(
        self,
        role: WorkerRole,
        name: str,
        block_size_tokens: int | None = None,
        long_prompt_tokens: int | None = None,
    ) -> Engine:
        spec = self._spec(role, name, "127.0.0.1", block_size_tokens or 16)
        engine = spec.engine.model_copy(update={"prefill_long_prompt_tokens": long_prompt_tokens})
        return SimEngine(replace(spec, engine=engine), open_handover_link, RealStepTimer())

    def make_broken(self) -> Engine:
        unreachable = "203.0.113.1"  # TEST-NET-3: no interface has it
        spec = self._spec(WorkerRole.DECODE, "broken", unreachable, 16)
        return SimEngine(spec, open_handover_link, RealStepTimer())

    def seeded(self, max_tokens: int) -> bytes:
        """It never samples."""
        return b""

    def _spec(self, role: WorkerRole, name: str, host: str, block_size_tokens: int) -> EngineSpec:
        sim = SimSpec(
            block_size_tokens=block_size_tokens,
            prefill_tokens_per_second=100_000.0,
            decode_step_seconds=0.001,
            decode_seconds_per_sequence=0.00001,
            blocks=400,
        )
        return EngineSpec(
            worker_id=WorkerId(name),
            epoch=next(numbers),
            role=role,
            model_dir=None,
            model_name="sim",
            model_identity="rev",
            engine=EngineConfig(kind="sim", max_model_len=2048, sim=sim),
            kv_cache=KvCacheConfig(),
            transfer=TransferConfig(engine_order=()),
            handover_host=host,
            speculation=self._speculation,
            draft_identity="draft" if self._speculation else "",
        )


@pytest.fixture(
    scope="module",
    params=[
        "sim",
        "sim that speculates",
        pytest.param("vllm", marks=[pytest.mark.real_vllm, pytest.mark.timeout(600)]),
    ],
)
def kit(request: pytest.FixtureRequest) -> EngineKit:
    if request.param == "sim":
        return SimKit()
    if request.param == "sim that speculates":
        return SimKit(Speculation(method="draft", tokens=3))
    made: EngineKit = request.getfixturevalue("tiny_vllm_kit")
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(kit: EngineKit) -> AsyncIterator[Pair]:
    prefill = await Harness.open(kit.make(WorkerRole.PREFILL, "prefill"), kit.settle_seconds)
    try:
        decode = await Harness.open(kit.make(WorkerRole.DECODE, "decode"), kit.settle_seconds)
    except BaseException:
        await prefill.close()
        raise
    yield Pair(prefill, decode)
    await asyncio.gather(prefill.close(), decode.close())


@pytest_asyncio.fixture(loop_scope="module")
async def pair(engines: Pair) -> AsyncIterator[Pair]:
    """The shared engines; they must be empty after each test."""
    yield engines
    await engines.prefill.empty()
    await engines.decode.empty()


@pytest.fixture
def prompt_of(kit: EngineKit) -> Callable[[int], list[int]]:
    """Prompts that no other test has used, so that no cache knows them. They repeat themselves: a
    model is then sure of what follows, and two kernels that round differently say the same."""

    def make(length: int) -> list[int]:
        rng = random.Random(next(numbers))
        theme = [rng.randrange(100, kit.prompt_vocab) for _ in range(7)]
        return list(itertools.islice(itertools.cycle(theme), length))

    return make


PromptOf = Callable[[int], list[int]]


# -- tokens


async def test_greedy_output_is_deterministic(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(40)
    first, second = await pair.decode.run(prompt, 12), await pair.decode.run(prompt, 12)
    assert tokens(first) == tokens(second)


@pytest.mark.parametrize("max_tokens", [1, 2, 17])
async def test_it_ends_at_max_tokens(pair: Pair, prompt_of: PromptOf, max_tokens: int) -> None:
    outputs = await pair.decode.run(prompt_of(20), max_tokens)
    assert len(tokens(outputs)) == max_tokens
    assert ended(outputs) is FinishReason.LENGTH
    assert all(output.finish_reason is None for output in outputs[:-1])


async def test_it_ends_with_a_stop_token(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(20)
    free = tokens(await pair.decode.run(prompt, 8))
    stop = free[3]
    outputs = await pair.decode.run(prompt, 8, stop_token_ids=frozenset({stop}))
    assert tokens(outputs) == free[: free.index(stop) + 1]
    assert ended(outputs) is FinishReason.STOP


async def test_min_tokens_keep_the_stop_token_away(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(20)
    stop = tokens(await pair.decode.run(prompt, 3))[0]
    outputs = await pair.decode.run(prompt, 6, stop_token_ids=frozenset({stop}), min_tokens=4)
    assert stop not in tokens(outputs)[:4]
    assert len(tokens(outputs)) >= 4


async def test_a_request_continued_from_its_tokens_so_far_says_the_same(
    pair: Pair, prompt_of: PromptOf
) -> None:
    prompt = prompt_of(60)
    whole = tokens(await pair.decode.run(prompt, 10))
    rest = tokens(await pair.prefill.run([*prompt, *whole[:4]], 6))
    assert whole[4:] == rest


async def test_many_requests_of_many_lengths_run_at_once(pair: Pair, prompt_of: PromptOf) -> None:
    prompts = [prompt_of(length) for length in LENGTHS]
    together = await asyncio.gather(*(pair.decode.run(prompt, 6) for prompt in prompts))
    for prompt, outputs in zip(prompts, together, strict=True):
        assert len(tokens(outputs)) == 6
        assert outputs[0].prefill_stats is not None
        assert outputs[0].prefill_stats.prompt_tokens == len(prompt)


async def test_a_prompt_that_is_too_long_is_refused_and_nothing_starts(
    pair: Pair, prompt_of: PromptOf
) -> None:
    with pytest.raises(InvalidRequest):
        await pair.decode.add(prompt_of(pair.decode.info.max_model_len_tokens + 1))


async def test_a_ticket_that_is_none_is_refused(pair: Pair, prompt_of: PromptOf) -> None:
    with pytest.raises(InvalidRequest):
        await pair.decode.add(prompt_of(20), kv={"do_remote_prefill": True, "lease_id": "x"})


# -- aborts


async def test_abort_at_once(pair: Pair, prompt_of: PromptOf) -> None:
    request_ids = [await pair.decode.add(prompt_of(200), 500) for _ in range(3)]
    await pair.decode.engine.abort([RequestId(request_id) for request_id in request_ids])
    await pair.decode.empty()


@pytest.mark.parametrize("seconds", [0.0, 0.002, 0.01])
async def test_abort_while_prefilling(pair: Pair, prompt_of: PromptOf, seconds: float) -> None:
    request_id = await pair.decode.add(prompt_of(1500), 500)
    await asyncio.sleep(seconds)  # no contract tells when prefill starts: any moment will do
    await pair.decode.abort(request_id)
    await pair.decode.empty()


async def test_abort_while_decoding_leaves_others_alone(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(30)
    alone = tokens(await pair.decode.run(prompt, 40))
    other = await pair.decode.add(prompt, 40)
    victim = await pair.decode.add(prompt_of(30), 1000)
    await pair.decode.first_token(victim)
    await pair.decode.abort(victim)
    assert tokens(await pair.decode.result(other)) == alone
    assert not finished(pair.decode.outputs[victim])


async def test_an_engine_says_when_nothing_runs_any_more(pair: Pair, prompt_of: PromptOf) -> None:
    """Also of requests that were cut off, which have no last output."""
    request_ids = [await pair.decode.add(prompt_of(300), 1000) for _ in range(3)]
    await pair.decode.first_token(request_ids[0])
    before = len(pair.decode.held_at_rest)
    for request_id in request_ids:
        await pair.decode.abort(request_id)
    await pair.decode.until(lambda: 0 in pair.decode.held_at_rest[before:], pair.decode.settle_seconds)
    assert (await pair.decode.engine.load()).running_requests == 0


async def test_aborting_the_unknown_is_harmless(pair: Pair, prompt_of: PromptOf) -> None:
    await pair.decode.abort("nobody")
    request_id = await pair.decode.add(prompt_of(10), 2)
    await pair.decode.result(request_id)
    await pair.decode.abort(request_id)


# -- the prefix cache


async def test_a_repeat_comes_from_the_local_cache(pair: Pair, prompt_of: PromptOf) -> None:
    prompt, size = prompt_of(300), pair.decode.info.block_size_tokens
    first, again = await pair.decode.run(prompt), await pair.decode.run(prompt)
    assert first[0].prefill_stats is not None
    assert again[0].prefill_stats is not None
    assert first[0].prefill_stats.local_cached_tokens == 0
    assert again[0].prefill_stats.local_cached_tokens == (len(prompt) - 1) // size * size
    assert tokens(first) == tokens(again)


async def test_what_a_prompt_leaves_in_the_cache_is_counted_where_it_was_computed(
    pair: Pair, prompt_of: PromptOf
) -> None:
    prompt, size = prompt_of(300), pair.prefill.info.block_size_tokens
    (computed,) = await pair.prefill.run(prompt, 1, kv=HAND_OVER)
    fetched = await pair.decode.run([*prompt, *computed.token_ids], 3, kv=computed.kv_transfer_params)
    (cached,) = await pair.prefill.run(prompt, 1)
    stats = [output.prefill_stats for output in (computed, fetched[0], cached)]
    assert [one and one.cache_creation_tokens for one in stats] == [300 // size * size, 0, 0]


async def test_kv_events_say_what_is_resident(pair: Pair, prompt_of: PromptOf) -> None:
    """After enough prompts to evict some, what the events claim is what the cache gives."""
    decode = pair.decode
    size = decode.info.block_size_tokens
    prompts = [prompt_of(1000) for _ in range(decode.info.total_blocks * size // 1000 + 2)]
    for prompt in prompts[:12]:
        await decode.run(prompt, 2)
        hashes = chain_hashes(prompt, size, SALT)
        await decode.until(lambda hashes=hashes: decode.resident.issuperset(hashes), 5.0)  # type: ignore[misc]
    assert len(decode.resident) <= decode.info.total_blocks
    for prompt in (prompts[0], prompts[min(len(prompts), 12) - 1]):
        hashes = chain_hashes(prompt, size, SALT)[: (len(prompt) - 1) // size]
        claimed = list(itertools.takewhile(decode.resident.__contains__, hashes))
        outputs = await decode.run(prompt, 1)
        assert outputs[0].prefill_stats is not None
        assert outputs[0].prefill_stats.local_cached_tokens == len(claimed) * size


# -- hand-over


@pytest.mark.parametrize("length", LENGTHS)
async def test_a_hand_over_gives_the_same_output(pair: Pair, prompt_of: PromptOf, length: int) -> None:
    prompt, size = prompt_of(length), pair.decode.info.block_size_tokens
    aggregated = await pair.prefill.run(prompt, 8, salt=OTHER_SALT)
    first, rest = await pair.continued(prompt, 8)
    assert first + tokens(rest) == tokens(aggregated)
    stats = rest[0].prefill_stats
    assert stats is not None
    computed = stats.prompt_tokens - stats.local_cached_tokens - stats.external_cached_tokens
    assert computed <= size, "at most one block is computed again"
    assert stats.external_cached_tokens > 0


async def test_decode_may_draw_the_first_token_again(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(300)
    aggregated = await pair.prefill.run(prompt, 8, salt=OTHER_SALT)
    handed = await pair.handed_over(prompt, 8)
    assert tokens(handed) == tokens(aggregated)
    stats = handed[0].prefill_stats
    assert stats is not None
    assert stats.external_cached_tokens >= 299


async def test_prefill_hands_over_its_first_token(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(50)
    (output,) = await pair.prefill.run(prompt, 1, kv=HAND_OVER)
    assert output.finish_reason is FinishReason.LENGTH
    ticket = PullParams.from_params(output.kv_transfer_params or {})
    assert ticket.num_tokens == len(prompt)
    handed = await pair.decode.run(prompt, 4, kv=output.kv_transfer_params)
    assert tokens(handed)[:1] == list(output.token_ids)


async def test_many_hand_overs_at_once(pair: Pair, prompt_of: PromptOf) -> None:
    """Long enough that the model is sure: in a batch, whose numbers come out otherwise, it says the same."""
    prompts = [prompt_of(length) for length in (100, 127, 128, 129, 255, 256, 257, 384, 500)]
    handed = await asyncio.gather(*(pair.handed_over(prompt, 5) for prompt in prompts))
    for prompt, outputs in zip(prompts, handed, strict=True):
        assert tokens(outputs) == tokens(await pair.prefill.run(prompt, 5))


async def test_a_decode_leg_may_begin_after_the_first_token(pair: Pair, prompt_of: PromptOf) -> None:
    """The user has prefill's token already; decode goes on from prompt + token."""
    prompt = prompt_of(100)
    whole = tokens(await pair.prefill.run(prompt, 6))
    ticket = await pair.ticket(prompt)
    rest = await pair.decode.run([*prompt, whole[0]], 5, kv=ticket)
    assert tokens(rest) == whole[1:]


async def test_what_the_decode_engine_has_is_not_fetched(pair: Pair, prompt_of: PromptOf) -> None:
    prompt, size = prompt_of(300), pair.decode.info.block_size_tokens
    before = tokens(await pair.decode.run(prompt, 4))
    handed = await pair.handed_over(prompt, 4)
    assert tokens(handed) == before
    assert handed[0].prefill_stats is not None
    assert handed[0].prefill_stats.local_cached_tokens == (len(prompt) - 1) // size * size


async def test_leases_are_reported(pair: Pair, prompt_of: PromptOf) -> None:
    pair.prefill.leases.clear()
    await pair.handed_over(prompt_of(100), 2)
    expected = [LeaseState.GRANTED, LeaseState.RELEASED]
    await pair.prefill.until(lambda: pair.prefill.leases == expected, 5.0)


async def test_a_lease_that_is_released_without_a_fetch_frees_its_blocks(
    pair: Pair, prompt_of: PromptOf
) -> None:
    ticket = PullParams.from_params(await pair.ticket(prompt_of(200)))
    assert await release_lease(ticket, 5.0)
    assert not await release_lease(ticket, 5.0), "it had ended"
    await pair.prefill.empty()


async def test_a_ticket_whose_lease_has_ended_is_recomputed(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(200)
    aggregated = tokens(await pair.prefill.run(prompt, 4))
    ticket = await pair.ticket(prompt)
    await release_lease(PullParams.from_params(ticket), 5.0)
    outputs = await pair.decode.run(prompt, 4, kv=ticket)
    assert tokens(outputs) == aggregated
    assert (await pair.decode.engine.load()).transfer_failures > 0


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.005, 0.02])
async def test_decode_aborted_while_it_loads(pair: Pair, prompt_of: PromptOf, seconds: float) -> None:
    prompt = prompt_of(1200)
    request_id = await pair.decode.add(prompt, 500, kv=await pair.ticket(prompt))
    await asyncio.sleep(seconds)  # any moment: before, while and after the blocks arrive
    await pair.decode.abort(request_id)
    await pair.decode.empty()
    await pair.prefill.empty()


async def test_prefill_aborted_before_it_hands_over(pair: Pair, prompt_of: PromptOf) -> None:
    request_id = await pair.prefill.add(prompt_of(1500), 1, kv=HAND_OVER)
    await pair.prefill.abort(request_id)
    if finished(pair.prefill.outputs.get(request_id, ())):  # it was quicker: then there is a lease
        params = pair.prefill.outputs[request_id][-1].kv_transfer_params
        await release_lease(PullParams.from_params(params or {}), 5.0)
    await pair.prefill.empty()


async def test_a_prefill_that_meets_a_stop_token_grants_no_lease(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(100)
    stop = tokens(await pair.prefill.run(prompt, 1))[0]
    (output,) = await pair.prefill.run(prompt, 1, kv=HAND_OVER, stop_token_ids=frozenset({stop}))
    assert (output.finish_reason, output.kv_transfer_params) == (FinishReason.STOP, None)


# -- push


@pytest.mark.parametrize("length", LENGTHS)
async def test_a_push_gives_the_same_output(pair: Pair, prompt_of: PromptOf, length: int) -> None:
    prompt = prompt_of(length)
    aggregated = await pair.prefill.run(prompt, 8, salt=OTHER_SALT)
    first, rest = await (await Push.start(pair, prompt, 7)).finish()
    assert first + tokens(rest) == tokens(aggregated)
    report, stats = rest[0].handover, rest[0].prefill_stats
    assert report is not None
    assert (report.pushed, report.fallbacks, report.reason) == (True, (), "")
    assert stats is not None
    assert (stats.prompt_tokens, stats.external_cached_tokens) == (length + 1, length)


async def test_push_and_pull_say_the_same(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(700)
    first, pulled = await pair.continued(prompt, 24)
    push = await Push.start(pair, prompt, 23, salt=OTHER_SALT)
    again, pushed = await push.finish()
    assert first == again
    assert tokens(pushed) == tokens(pulled)
    assert pulled[0].handover is not None
    assert not pulled[0].handover.pushed


async def test_decode_may_draw_the_first_token_of_a_push_again(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(300)
    push = await Push.start(pair, prompt, 8, continues=False)
    first, whole = await push.finish()
    assert tokens(whole)[:1] == first
    assert tokens(whole) == tokens(await pair.prefill.run(prompt, 8))


async def test_decode_may_come_when_prefill_is_done(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(300)
    transfer_id = TransferId(f"late-{next(numbers)}")
    (output,) = await pair.prefill.run(prompt, 1, kv=prefill_params(transfer_id))
    push = await Push.start(pair, prompt, 5, transfer_id=transfer_id)
    rest = await push.output()
    assert [*output.token_ids, *tokens(rest)] == tokens(await pair.prefill.run(prompt, 6))
    assert rest[0].handover is not None
    assert rest[0].handover.pushed


async def test_many_pushes_at_once(pair: Pair, prompt_of: PromptOf) -> None:
    """More tokens than one step computes: prompts are cut into chunks. Few tokens are compared, because
    chunks and batches round differently."""
    prompts = [prompt_of(length) for length in (1500, 1400, 1300, 500, 129, 17)]
    pushes = [await Push.start(pair, prompt, 2) for prompt in prompts]
    for prompt, (first, rest) in zip(
        prompts, await asyncio.gather(*(push.finish() for push in pushes)), strict=True
    ):
        assert first + tokens(rest) == tokens(await pair.prefill.run(prompt, 3))
        assert rest[0].handover is not None
        assert rest[0].handover.pushed


async def test_pushes_and_pulls_mix(pair: Pair, prompt_of: PromptOf) -> None:
    prompts = [prompt_of(400) for _ in range(4)]
    pushes = [await Push.start(pair, prompt, 4) for prompt in prompts[:2]]
    pulled, pushed = await asyncio.gather(
        asyncio.gather(*(pair.continued(prompt, 5) for prompt in prompts[2:])),
        asyncio.gather(*(push.finish() for push in pushes)),
    )
    for prompt, (first, rest) in zip(prompts, [*pushed, *pulled], strict=True):
        assert first + tokens(rest) == tokens(await pair.prefill.run(prompt, 5))


async def test_what_the_decode_engine_has_is_not_pushed(pair: Pair, prompt_of: PromptOf) -> None:
    prompt, size = prompt_of(300), pair.decode.info.block_size_tokens
    before = tokens(await pair.decode.run(prompt, 5))
    first, rest = await (await Push.start(pair, prompt, 4)).finish()
    assert first + tokens(rest) == before
    stats = rest[0].prefill_stats
    assert stats is not None
    assert stats.local_cached_tokens == (len(prompt) - 1) // size * size
    assert stats.local_cached_tokens + stats.external_cached_tokens == len(prompt)


async def test_what_the_prefill_engine_has_is_pushed_at_once(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(700)
    _, before = await pair.prefill.twice(prompt, 5)
    first, rest = await (await Push.start(pair, prompt, 4)).finish()
    assert first + tokens(rest) == before
    assert rest[0].handover is not None
    assert rest[0].handover.pushed


async def test_the_lease_of_a_push_is_given_back(pair: Pair, prompt_of: PromptOf) -> None:
    pair.prefill.leases.clear()
    await (await Push.start(pair, prompt_of(100), 2)).finish()
    expected = [LeaseState.GRANTED, LeaseState.RELEASED]
    await pair.prefill.until(lambda: pair.prefill.leases == expected, 5.0)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.01, 0.1, 0.5])
async def test_decode_aborted_while_it_is_pushed(pair: Pair, prompt_of: PromptOf, seconds: float) -> None:
    """Others then get the blocks: their output is right."""
    prompt = prompt_of(1200)
    push = await Push.start(pair, prompt, 500)
    prefill_id = await push.prefill()
    await asyncio.sleep(seconds)  # any moment: before, while and after the blocks arrive
    await pair.decode.abort(push.decode_id)
    other = prompt_of(1200)
    said = await pair.decode.twice(other, 3)
    await pair.prefill.result(prefill_id)
    await pair.prefill.empty()
    await pair.decode.empty()
    whole, cached = await pair.prefill.twice(other, 3)
    assert said == (whole, cached)
    assert tokens(await pair.decode.run(other, 3)) == cached, "nothing came later"


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.1])
async def test_both_aborted_during_a_push(pair: Pair, prompt_of: PromptOf, seconds: float) -> None:
    push = await Push.start(pair, prompt_of(1200), 500)
    prefill_id = await push.prefill()
    await asyncio.sleep(seconds)
    await asyncio.gather(pair.decode.abort(push.decode_id), pair.prefill.abort(prefill_id))
    if finished(pair.prefill.outputs.get(prefill_id, ())):  # it was quicker: then there is a lease
        params = pair.prefill.outputs[prefill_id][-1].kv_transfer_params
        await release_lease(PullParams.from_params(params or {}), 5.0)


async def test_a_push_that_is_never_begun_is_aborted(pair: Pair, prompt_of: PromptOf) -> None:
    push = await Push.start(pair, prompt_of(500), 5)
    await asyncio.sleep(0.05)
    await pair.decode.abort(push.decode_id)
    await pair.decode.empty()


async def test_when_prefill_is_aborted_decode_computes_the_prompt(pair: Pair, prompt_of: PromptOf) -> None:
    """Whoever knows of the abort aborts decode too; if not, it does not wait for ever."""
    prompt = prompt_of(1300)
    push = await Push.start(pair, prompt, 5)
    await pair.prefill.abort(await push.prefill())
    if finished(await push.output()) and (report := (await push.output())[0].handover):
        assert report.pushed or report.reason == "push: prefill was aborted"
    await pair.prefill.empty()


async def test_a_prefill_that_meets_a_stop_token_pushes_nothing(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(100)
    stop = tokens(await pair.prefill.run(prompt, 1))[0]
    push = await Push.start(pair, prompt, 5)
    (output,) = await pair.prefill.result(await push.prefill(stop_token_ids=frozenset({stop})))
    assert (output.finish_reason, output.kv_transfer_params) == (FinishReason.STOP, None)
    await pair.decode.abort(push.decode_id)


async def test_a_push_card_that_is_none_is_refused(pair: Pair, prompt_of: PromptOf) -> None:
    card = PushParams(TransferId("t"), WorkerId("prefill"), 1, ("127.0.0.1:1",), 21, continues=True)
    with pytest.raises(InvalidRequest, match="num_tokens"):
        await pair.decode.add(prompt_of(20), kv=card.to_params())
    with pytest.raises(InvalidRequest, match="transfer_id"):
        await pair.decode.add(prompt_of(20), kv={"do_remote_prefill": True, "push": {}})
    with pytest.raises(InvalidRequest, match="transfer_id"):
        await pair.prefill.add(prompt_of(20), 1, kv={"do_remote_decode": True, "push": {}})


async def test_a_push_from_a_worker_that_is_gone_is_recomputed(pair: Pair, prompt_of: PromptOf) -> None:
    prompt = prompt_of(200)
    card = PushParams(TransferId("t"), WorkerId("gone"), 1, ("127.0.0.1:1",), 200, continues=True)
    outputs = await pair.decode.run(prompt, 4, kv=card.to_params())
    assert tokens(outputs) == tokens(await pair.prefill.run(prompt, 4))
    assert outputs[0].handover is not None
    assert "cannot connect" in outputs[0].handover.reason


async def test_a_lease_is_granted_while_prefill_computes_other_prompts(
    pair: Pair, prompt_of: PromptOf
) -> None:
    """Three prompts need two steps; what the first step finishes is handed over during the second."""
    short, *long = prompt_of(100), prompt_of(1500), prompt_of(1400)
    others = [await pair.prefill.add(prompt, 1) for prompt in long]
    (output,) = await pair.prefill.run(short, 1, kv=HAND_OVER)
    outputs = await pair.decode.run([*short, *output.token_ids], 2, kv=output.kv_transfer_params)
    assert outputs[0].prefill_stats is not None
    assert outputs[0].prefill_stats.external_cached_tokens == len(short)
    for other in others:
        await pair.prefill.result(other)


# -- another block size, and prompts in pieces


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other(kit: EngineKit, engines: Pair) -> AsyncIterator[Harness]:
    """An engine with blocks of another size than those of the pair. It computes prompts in pieces."""
    engine = kit.make(WorkerRole.AGGREGATED, "other", kit.other_block_size, PIECE)
    harness = await Harness.open(engine, kit.settle_seconds)
    assert harness.info.block_size_tokens == kit.other_block_size != engines.decode.info.block_size_tokens
    yield harness
    await harness.close()


@pytest.mark.parametrize("length", LENGTHS)
async def test_a_hand_over_to_larger_and_to_smaller_blocks(
    pair: Pair, other: Harness, prompt_of: PromptOf, length: int
) -> None:
    for there, here in ((other, pair.decode), (pair.prefill, other)):
        prompt = prompt_of(length)
        aggregated = tokens(await pair.prefill.run(prompt, 8, salt=OTHER_SALT))
        before = (await here.engine.load()).transfer_failures
        first, rest = await Pair(there, here).continued(prompt, 8)
        assert first + tokens(rest) == aggregated
        assert rest[0].prefill_stats is not None
        assert rest[0].prefill_stats.external_cached_tokens == length
        assert (await here.engine.load()).transfer_failures == before
        await there.empty()


async def test_what_is_cached_in_other_blocks_is_not_fetched(
    pair: Pair, other: Harness, prompt_of: PromptOf
) -> None:
    prompt, size = prompt_of(300), other.info.block_size_tokens
    before = tokens(await other.run(prompt[:200], 1))
    handed = await Pair(pair.prefill, other).handed_over(prompt, 4)
    assert len(before) == 1
    assert tokens(handed) == tokens(await pair.prefill.run(prompt, 4, salt=OTHER_SALT))
    assert handed[0].prefill_stats is not None
    cached = 200 // size * size
    assert handed[0].prefill_stats.local_cached_tokens == cached
    assert handed[0].prefill_stats.external_cached_tokens == 300 - cached


async def test_a_seeded_prompt_in_pieces_is_answered_each_time_alike(
    kit: EngineKit, other: Harness, prompt_of: PromptOf
) -> None:
    """Under a salt that no cache knows. Such a request once ended an engine of vLLM on CPU."""
    prompt, seeded = prompt_of(300), kit.seeded(6)
    answers = [
        tokens(await other.run(prompt, 6, salt=salt, sampling_params=seeded)) for salt in (SALT, OTHER_SALT)
    ]
    assert len(answers[0]) == 6
    assert answers[0] == answers[1]


# -- load and life


async def test_load_shows_what_runs(pair: Pair, prompt_of: PromptOf) -> None:
    request_id = await pair.decode.add(prompt_of(100), 1000)
    await pair.decode.first_token(request_id)
    await asyncio.sleep(0)
    load = await pair.decode.engine.load()
    assert (load.running_requests, load.waiting_requests) == (1, 0)
    assert 0 < load.used_blocks <= pair.decode.info.total_blocks
    await pair.decode.abort(request_id)


async def test_load_shows_what_is_leased(pair: Pair, prompt_of: PromptOf) -> None:
    ticket = PullParams.from_params(await pair.ticket(prompt_of(200)))
    await eventually(lambda: _leased(pair.prefill, len(ticket.blocks.block_ids)))
    await release_lease(ticket, 5.0)


async def test_a_ping_is_answered_when_idle_and_while_it_computes(pair: Pair, prompt_of: PromptOf) -> None:
    async with asyncio.timeout(30):
        await pair.decode.engine.ping()
        running = await pair.decode.add(prompt_of(1500), 100)
        for _ in range(3):
            await pair.decode.engine.ping()
        await pair.decode.result(running)


async def test_pings_let_an_idle_engine_rest(pair: Pair) -> None:
    """vLLM's worker processes spin for a second after each message: with one a second they never rested."""
    await asyncio.sleep(2.0 if pair.decode.engine.processes() else 0)  # for the last message before
    before = read_effort(pair.decode.engine.processes())
    for _ in range(4 if pair.decode.engine.processes() else 1):
        await pair.decode.engine.ping()
        await asyncio.sleep(1.0 if pair.decode.engine.processes() else 0)
    after = read_effort(pair.decode.engine.processes())
    assert after.cpu_seconds - before.cpu_seconds < 1.0


async def _leased(harness: Harness, blocks: int) -> bool:
    return (await harness.engine.load()).leased_blocks == blocks


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - a remote state
            await asyncio.sleep(0.01)


async def test_closing_twice_and_using_it_afterwards(other: Harness, prompt_of: PromptOf) -> None:
    """This test is the last one that uses `other`: it closes it."""
    await other.run(prompt_of(10), 2)
    await other.add(prompt_of(10), 1000)  # still running when it is closed
    await other.close()
    await other.engine.aclose()
    with pytest.raises(EngineDead):
        await other.add(prompt_of(10), 2)
    with pytest.raises(EngineDead):
        await other.engine.next_outputs()
    with pytest.raises(EngineDead):
        await other.engine.ping()


async def test_closing_what_never_started(kit: EngineKit) -> None:
    await kit.make(WorkerRole.AGGREGATED, "unused").aclose()


async def test_closing_after_a_failed_start(kit: EngineKit) -> None:
    engine = kit.make_broken()
    with pytest.raises((StartFailed, ModelNotFound)):
        await engine.start()
    await engine.aclose()
    await engine.aclose()
