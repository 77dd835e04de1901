"""A simulated engine that speculates says what it says without, in fewer steps."""

from collections.abc import Awaitable, Callable, Sequence

import pytest

from llmserve.core.outcome import FinishReason, WorkerRole
from llmserve.core.request import Acceptance, EngineOutput, EngineRequest
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
