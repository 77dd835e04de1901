"""A simulated engine that speculates says what it says without, in fewer steps."""

from collections.abc import Awaitable, Callable, Sequence

import pytest

from llmserve.core.request import Acceptance, EngineOutput, EngineRequest, FinishReason, WorkerRole
from llmserve.engines.sim.engine import SimEngine
from tests.unit.engines.sim.local_fabric import VirtualStepTimer

Start = Callable[..., Awaitable[SimEngine]]
RequestOf = Callable[..., EngineRequest]
UntilDone = Callable[..., Awaitable[dict[str, list[EngineOutput]]]]
Answer = Callable[..., Awaitable[list[EngineOutput]]]

PROMPT = list(range(100, 140))


@pytest.fixture
def answer(start_engine: Start, request_of: RequestOf, until_done: UntilDone) -> Answer:
    async def ask(max_tokens: int = 41, /, stop: frozenset[int] = frozenset(), **settings: object) -> object:
        engine = await start_engine(f"w{len(settings)}{max_tokens}", **settings)
        await engine.add(request_of("a", PROMPT, max_tokens, stop_token_ids=stop))
        outputs = (await until_done(engine, "a"))["a"]
        assert (await engine.load()).used_blocks == 0
        return outputs

    return ask  # type: ignore[return-value]  # of outputs


def sizes(outputs: Sequence[EngineOutput]) -> list[int]:
    return [len(output.token_ids) for output in outputs]


def tokens(outputs: Sequence[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def test_right_proposals_come_with_the_token_after_them(answer: Answer) -> None:
    outputs = await answer(proposed_tokens=3, acceptance=1.0)
    assert sizes(outputs) == [1, *[4] * 10], "the first step has no proposals yet"
    assert outputs[-1].acceptance == Acceptance(steps=10, proposed_tokens=30, accepted_tokens=30)
    assert tokens(outputs) == tokens(await answer())


async def test_wrong_proposals_change_nothing(answer: Answer) -> None:
    outputs = await answer(proposed_tokens=3, acceptance=0.0)
    assert sizes(outputs) == [1] * 41
    assert outputs[-1].acceptance == Acceptance(steps=40, proposed_tokens=120, accepted_tokens=0)
    assert tokens(outputs) == tokens(await answer())


async def test_proposals_are_right_as_often_as_the_setting_says(answer: Answer) -> None:
    outputs = await answer(2001, proposed_tokens=1, acceptance=0.7)
    accepted = sum(size - 1 for size in sizes(outputs))
    (report,) = [one.acceptance for one in outputs if one.acceptance is not None]
    assert report.accepted_tokens == accepted
    assert accepted / report.proposed_tokens == pytest.approx(0.7, abs=0.04)
    assert tokens(outputs) == tokens(await answer(2001))


async def test_an_answer_ends_within_the_proposals(answer: Answer) -> None:
    outputs = await answer(7, proposed_tokens=3, acceptance=1.0)
    assert sizes(outputs) == [1, 4, 2]
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    last = tokens(outputs)[2]
    stopped = await answer(7, stop=frozenset({last}), proposed_tokens=3, acceptance=1.0)
    assert sizes(stopped) == [1, 2]
    assert (stopped[-1].finish_reason, stopped[-1].stop_reason) == (FinishReason.STOP, last)


async def test_where_blocks_are_short_fewer_proposals_are_taken(answer: Answer) -> None:
    outputs = await answer(9, proposed_tokens=8, acceptance=1.0, blocks=3, block_size_tokens=16)
    assert sizes(outputs) == [1, 8], "48 tokens have room, and the last one needs none"
    tight = await answer(24, proposed_tokens=30, acceptance=1.0, blocks=4, block_size_tokens=16)
    assert sum(sizes(tight)) == 24
    assert tokens(tight) == tokens(await answer(24))


async def test_prefill_proposes_nothing(answer: Answer) -> None:
    outputs = await answer(9, proposed_tokens=3, acceptance=1.0, role=WorkerRole.PREFILL)
    assert sizes(outputs) == [1] * 9
    assert outputs[-1].acceptance is None


async def test_proposals_take_time(answer: Answer, pace: VirtualStepTimer) -> None:
    settings = {"decode_step_seconds": 1.0, "decode_seconds_per_sequence": 0.5}
    await answer(9, proposed_tokens=4, acceptance=0.0, proposed_token_seconds=0.125, **settings)
    assert pace.now() == pytest.approx(8 * 2.0)


@pytest.mark.parametrize(
    ("acceptance", "gain", "on", "verifications"),
    [(1.0, 2.5, True, range(35, 50)), (0.0, 0.5, False, range(5, 15))],
)
async def test_an_engine_proposes_only_while_it_pays(
    start_engine: Start,
    request_of: RequestOf,
    until_done: UntilDone,
    pace: VirtualStepTimer,
    acceptance: float,
    gain: float,
    on: bool,
    verifications: range,
) -> None:
    """Four proposals make a step of a second last two, and give up to five tokens. The first step of the
    answer has fewer, and so has the last one."""
    engine = await start_engine(
        "w",
        proposed_tokens=4,
        adaptive=True,
        acceptance=acceptance,
        decode_step_seconds=1.0,
        proposed_token_seconds=0.25,
    )
    assert (await engine.load()).speculation is None
    await engine.add(request_of("a", PROMPT, 201))
    outputs = (await until_done(engine, "a"))["a"]
    report, accepted = (await engine.load()).speculation, outputs[-1].acceptance
    assert report is not None
    assert accepted == Acceptance(
        report.verifications, report.proposed_tokens, report.accepted_tokens, switched_off=not on
    )
    (found,) = report.gains
    assert (found.batch, found.proposes, found.steps) == (1, on, len(outputs))
    assert found.gain == pytest.approx(gain, rel=0.1)
    assert report.verifications in verifications


async def test_steps_with_prompts_tell_nothing_of_proposals(
    start_engine: Start, request_of: RequestOf, until_done: UntilDone, pace: VirtualStepTimer
) -> None:
    engine = await start_engine("w", proposed_tokens=4, adaptive=True, decode_step_seconds=1.0)
    for number in range(40):
        await engine.add(request_of(f"r{number}", [number, *PROMPT], 1))
        await until_done(engine, f"r{number}")
    assert (await engine.load()).speculation is None
