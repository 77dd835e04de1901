"""A leg: who gets its outputs, when it is over, and its deadlines."""

import asyncio

import pytest

from llmserve.apiserver.links.worker import LegStream
from llmserve.core.errors import InvalidRequest, LLMServeError, WorkerLost, WorkerStalled
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput, FinishReason

R = RequestId("r")
LAST = EngineOutput(R, (9,), FinishReason.STOP)


class Taken:
    """Takes outputs until it has `enough` tokens."""

    def __init__(self, enough: int = 100) -> None:
        self.tokens: list[int] = []
        self._enough = enough

    def __call__(self, output: EngineOutput) -> bool:
        self.tokens.extend(output.token_ids)
        return len(self.tokens) >= self._enough


class Legs:
    """Makes legs, and remembers of each that is closed whether it ran."""

    def __init__(self) -> None:
        self.closed: list[bool] = []

    def leg(self, first_seconds: float = 5.0, next_seconds: float = 5.0) -> LegStream:
        return LegStream(
            R, "decode-0", first_seconds, next_seconds, lambda leg, running: self.closed.append(running)
        )


def token(number: int) -> EngineOutput:
    return EngineOutput(R, (number,))


def failure(error: str, reason: FinishReason = FinishReason.ERROR) -> EngineOutput:
    return EngineOutput(R, finish_reason=reason, error=error)


async def test_outputs_are_taken_as_they_come_without_a_turn_of_the_loop() -> None:
    legs, taken = Legs(), Taken()
    leg = legs.leg()
    leg.deliver(token(1))
    taking = asyncio.create_task(leg.pass_to(taken))
    await asyncio.sleep(0)
    leg.deliver(token(2))
    assert taken.tokens == [1, 2]
    leg.deliver(LAST)
    await taking
    leg.close()
    leg.close()
    assert taken.tokens == [1, 2, 9]
    assert legs.closed == [False]


async def test_what_comes_before_anybody_takes_it_waits() -> None:
    leg, taken = Legs().leg(), Taken()
    for output in (token(1), token(2), LAST):
        leg.deliver(output)
    await leg.has_output()
    await leg.pass_to(taken)
    assert taken.tokens == [1, 2, 9]
    leg.close()


async def test_who_has_enough_gets_no_more_and_the_rest_is_untaken() -> None:
    legs, taken = Legs(), Taken(enough=2)
    leg = legs.leg()
    for number in (1, 2, 3):
        leg.deliver(token(number))
    await leg.pass_to(taken)
    leg.deliver(token(4))
    assert taken.tokens == [1, 2]
    assert [output.token_ids for output in leg.untaken()] == [(3,), (4,)]
    leg.close()
    assert legs.closed == [True]


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        (WorkerLost("the link broke"), WorkerLost, "the link broke"),
        (failure("InvalidRequest: no such grammar"), InvalidRequest, "^no such grammar"),
        (failure("out of memory"), LLMServeError, "^out of memory"),
        (failure("ValueError: odd"), LLMServeError, "^ValueError: odd"),
        (failure(""), LLMServeError, "could not go on"),
        (failure("", FinishReason.ABORT), WorkerLost, "gave the request up"),
    ],
)
async def test_a_leg_that_fails_says_why(
    event: EngineOutput | LLMServeError, error: type[Exception], message: str
) -> None:
    waits, running = Legs().leg(), Legs().leg()
    waits.deliver(event)
    with pytest.raises(error, match=message):
        await waits.has_output()
    running.deliver(token(1))
    taken = Taken()
    taking = asyncio.create_task(running.pass_to(taken))
    await asyncio.sleep(0)
    running.deliver(event)
    with pytest.raises(error, match=message):
        await taking
    assert taken.tokens == [1]
    waits.close()
    running.close()


async def test_what_the_taker_raises_ends_the_taking() -> None:
    def refuse(output: EngineOutput) -> bool:
        raise WorkerLost("not what was asked for")

    leg = Legs().leg()
    leg.deliver(token(1))
    with pytest.raises(WorkerLost, match="not what was asked for"):
        await leg.pass_to(refuse)
    leg.close()


async def test_a_taker_that_is_cancelled_gets_no_more() -> None:
    leg, taken = Legs().leg(), Taken()
    taking = asyncio.create_task(leg.pass_to(taken))
    await asyncio.sleep(0)
    taking.cancel()
    leg.deliver(token(1))
    leg.deliver(token(2))
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert len(taken.tokens) <= 1
    leg.close()


async def test_an_output_in_time_moves_the_deadline() -> None:
    leg, taken = Legs().leg(first_seconds=0.02), Taken()
    leg.deliver(token(1))
    taking = asyncio.create_task(leg.pass_to(taken))
    await asyncio.sleep(0.05)
    leg.deliver(LAST)
    await taking
    assert taken.tokens == [1, 9]
    leg.close()


@pytest.mark.parametrize(("first", "later"), [(0.01, 5), (5, 0.01)])
async def test_one_that_is_late_is_a_stall(first: float, later: float) -> None:
    legs = Legs()
    leg = legs.leg(first, later)
    if later < first:
        leg.deliver(token(1))
        leg.deliver(token(2))
    with pytest.raises(WorkerStalled, match=r"decode-0 gave no output within 0\.01 s"):
        await leg.pass_to(Taken())
    leg.close()
    assert legs.closed == [True]  # it is aborted there
