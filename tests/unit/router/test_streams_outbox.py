import asyncio
from collections.abc import AsyncIterator

import pytest

from llmserve.core.errors import InvalidRequest
from llmserve.router.streams import RouterOutbox
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2


def _placed(name: str) -> router_pb2.RouterSessionResponse:
    return router_pb2.RouterSessionResponse(placed=router_pb2.Placed(request_id=name))


def _state(*names: str) -> router_pb2.RouterSessionResponse:
    workers = [common_pb2.WorkerInfo(worker_id=name) for name in names]
    return router_pb2.RouterSessionResponse(state=router_pb2.ClusterState(workers=workers))


def _with_adapters(name: str, adapters: router_pb2.NamedAdapters) -> router_pb2.RouterSessionResponse:
    message = _state(name)
    message.state.adapters.CopyFrom(adapters)
    return message


async def _next(batches: AsyncIterator[router_pb2.RouterSessionResponses]) -> list[object]:
    return list((await anext(batches)).messages)


async def test_the_latest_state_goes_first_then_answers_in_order() -> None:
    outbox = RouterOutbox()
    outbox.send(_placed("a"))
    outbox.send_state(_state("old"))
    outbox.send_state(_state("new"))
    outbox.send(_placed("b"))
    outbox.close()
    batches = [list(batch.messages) async for batch in outbox]
    assert batches == [[_state("new"), _placed("a"), _placed("b")]], "all that waits at once"


async def test_a_state_that_waits_keeps_its_adapters_for_the_next_one() -> None:
    first, second, other = RouterOutbox(), RouterOutbox(), _state("new")
    names = router_pb2.NamedAdapters(adapters=[router_pb2.NamedAdapter(name="sql")])
    first.send_state(_state("old"))
    first.send_state(_with_adapters("middle", names))
    first.send_state(other)
    second.send_state(other)
    for outbox, expected in ((first, _with_adapters("new", names)), (second, _state("new"))):
        assert await _next(aiter(outbox)) == [expected]


async def test_later_adapters_take_the_place_of_earlier_ones() -> None:
    outbox = RouterOutbox()
    outbox.send_state(_with_adapters("old", router_pb2.NamedAdapters(adapters=[router_pb2.NamedAdapter()])))
    outbox.send_state(_with_adapters("new", router_pb2.NamedAdapters()))
    assert await _next(aiter(outbox)) == [_with_adapters("new", router_pb2.NamedAdapters())]


async def test_waits_for_news() -> None:
    outbox = RouterOutbox()
    first = asyncio.ensure_future(_next(aiter(outbox)))
    await asyncio.sleep(0)
    assert not first.done()
    outbox.send(_placed("a"))
    assert await first == [_placed("a")]


async def test_closing_with_an_error_raises_it_at_the_end() -> None:
    outbox = RouterOutbox()
    outbox.send(_placed("a"))
    outbox.close(InvalidRequest("no"))
    outbox.close()  # the first reason stands
    batches = aiter(outbox)
    assert await _next(batches) == [_placed("a")]
    with pytest.raises(InvalidRequest):
        await anext(batches)


async def test_a_sign_of_life_when_there_is_nothing_else() -> None:
    outbox = RouterOutbox(idle_seconds=0.01)
    batches = aiter(outbox)
    assert await _next(batches) == []
    outbox.send(_placed("a"))
    assert await _next(batches) == [_placed("a")]
    assert await _next(batches) == []


async def test_that_places_are_wanted_is_told_at_once_and_the_end_of_it_with_the_next_answer() -> None:
    outbox = RouterOutbox()
    batches = aiter(outbox)
    for _ in range(2):
        outbox.want_places(True)
        assert await anext(batches) == router_pb2.RouterSessionResponses(places_wanted=True)
        outbox.want_places(True)
        outbox.want_places(False)
        first = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        assert not first.done(), "it is no news"
        outbox.send(_placed("a"))
        assert await first == router_pb2.RouterSessionResponses(messages=[_placed("a")])


async def test_a_sign_of_life_has_told_whether_places_are_wanted() -> None:
    outbox = RouterOutbox(idle_seconds=0.01)
    batches = aiter(outbox)
    outbox.want_places(True)
    assert (await anext(batches)).places_wanted
    outbox.want_places(False)
    assert not (await anext(batches)).places_wanted, "the sign of life"
    outbox.want_places(True)
    outbox.close()
    assert [batch.places_wanted async for batch in batches] == [True]
