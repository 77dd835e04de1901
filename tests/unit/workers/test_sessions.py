"""Who owns which request, and what a broken stream leaves behind."""

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.errors import EngineDead, InvalidRequest
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput, FinishReason
from llmserve.workers.sessions import SessionRemains, WorkerSessions

A, B = RequestId("a"), RequestId("b")


def ticket(name: str, lease_seconds: float = 30.0) -> dict[str, object]:
    return {"lease_id": name, "lease_seconds": lease_seconds}


def granted(request_id: RequestId, lease_seconds: float = 30.0) -> EngineOutput:
    return EngineOutput(
        request_id,
        (1,),
        FinishReason.LENGTH,
        kv_transfer_params=ticket(request_id, lease_seconds),
    )


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def sessions(clock: VirtualClock) -> WorkerSessions:
    return WorkerSessions(clock)


async def test_outputs_go_to_their_owners(sessions: WorkerSessions) -> None:
    one, two = sessions.open(), sessions.open()
    sessions.claim(one, A)
    sessions.claim(two, B)
    sessions.dispatch([EngineOutput(A, (1,)), EngineOutput(B, (2,)), EngineOutput(A, (3,))])
    assert [list(output.token_ids) for output in await one.outbox.take()] == [[1, 3]]
    assert [list(output.token_ids) for output in await two.outbox.take()] == [[2]]


def test_an_id_is_taken_until_its_request_ends(sessions: WorkerSessions) -> None:
    one, two = sessions.open(), sessions.open()
    sessions.claim(one, A)
    with pytest.raises(InvalidRequest, match="in use"):
        sessions.claim(two, A)
    sessions.dispatch([EngineOutput(A, finish_reason=FinishReason.STOP)])
    sessions.claim(two, A)
    assert sessions.owns(two, A)


def test_a_ticket_for_nobody_is_returned(sessions: WorkerSessions) -> None:
    session = sessions.open()
    sessions.claim(session, A)
    assert sessions.withdraw(session, A) == []
    assert sessions.dispatch([granted(A)]) == [ticket(A)]


def test_withdrawing_what_another_owns_does_nothing(sessions: WorkerSessions) -> None:
    one, two = sessions.open(), sessions.open()
    sessions.claim(one, A)
    assert sessions.withdraw(two, A) == []
    assert sessions.owns(one, A)


def test_a_broken_stream_leaves_aborts_and_young_tickets(
    sessions: WorkerSessions, clock: VirtualClock
) -> None:
    session = sessions.open()
    for request_id in (A, B, RequestId("c")):
        sessions.claim(session, request_id)
    sessions.dispatch([granted(A, lease_seconds=5.0)])
    clock.advance(6.0)
    sessions.dispatch([granted(B)])
    assert sessions.close(session) == SessionRemains(aborts=(RequestId("c"),), releases=(ticket(B),))
    assert sessions.close(session) == SessionRemains((), ())
    assert len(sessions) == 0
    assert not sessions.running


async def test_a_drained_stream_ends_with_its_last_request(sessions: WorkerSessions) -> None:
    session = sessions.open()
    sessions.claim(session, A)
    sessions.drain(session)
    sessions.dispatch([EngineOutput(A, (1,), FinishReason.LENGTH)])
    assert len(await session.outbox.take()) == 1
    assert await session.outbox.take() == []


async def test_giving_up_tells_everybody_why(sessions: WorkerSessions) -> None:
    session = sessions.open()
    sessions.claim(session, A)
    assert sessions.give_up(EngineDead("it crashed")) == [A]
    (told,) = await session.outbox.take()
    assert (told.finish_reason, told.error) == (FinishReason.ERROR, "EngineDead: it crashed")
    assert await session.outbox.take() == []
