"""What the link to the router sends at once, and what waits. tests/integration/routers has the rest."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from llmserve.apiserver.links.requests import PlacementEnd
from llmserve.apiserver.links.router import RouterLink, _DatedMessage, _drain
from llmserve.core.ids import ApiserverId
from llmserve.core.request import Outcome
from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import RouterAddresses
from llmserve.rpc.outbox import Outbox


class _Session:
    """A link whose messages come from `sent`, as the router would get them."""

    def __init__(self) -> None:
        addresses, metrics = RouterAddresses(("router:1",)), ApiserverMetrics(CollectorRegistry())
        self.link = RouterLink(addresses, ApiserverId("a"), metrics)
        self.link.connected = True
        self.link._outbox = outbox = Outbox[_DatedMessage]()
        self.sent: AsyncIterator[router_pb2.RouterSessionRequests] = _drain(outbox)

    async def ask(self, name: str, *, is_limited: bool = False) -> None:
        """Ends when the request waits for its placement."""
        admit = router_pb2.Admit(request_id=name)
        if is_limited:
            admit.key_limits.SetInParent()
        self.asking = asyncio.create_task(self.link.admit(admit))
        assert (await anext(self.sent)).messages[-1].admit.request_id == name

    async def place(self, name: str) -> None:
        self.link._receive(router_pb2.RouterSessionResponse(placed=router_pb2.Placed(request_id=name)))
        await self.asking


@pytest.fixture
async def session(monkeypatch: pytest.MonkeyPatch) -> _Session:
    """What waits for company waits for longer than any stall of this machine."""
    monkeypatch.setattr("llmserve.apiserver.links.router._COMPANY_SECONDS", 10.0)
    return _Session()


@pytest.mark.parametrize("is_limited", [True, False])
async def test_the_end_of_a_request_of_a_limited_key_waits_for_nothing(
    session: _Session, is_limited: bool
) -> None:
    await session.ask("r", is_limited=is_limited)
    session.link.done("r", PlacementEnd(Outcome.CANCELLED, 0))
    session.asking.cancel()
    sending = asyncio.ensure_future(anext(session.sent))
    await asyncio.wait({sending}, timeout=30.0 if is_limited else 0.01)
    assert sending.done() is is_limited
    sending.cancel()


async def test_what_no_admission_takes_along_is_sent_alone(session: _Session) -> None:
    session.link._company_seconds = 0.01
    await session.ask("r")
    await session.place("r")
    session.link.first_token("r")
    (message,) = (await anext(session.sent)).messages
    assert message.age_seconds >= 0.009


async def test_what_needs_no_answer_travels_with_an_admission_and_says_its_age(session: _Session) -> None:
    await session.ask("r")
    await session.place("r")
    session.link.first_token("r")
    await asyncio.sleep(0.005)
    session.link.done("r", PlacementEnd(Outcome.COMPLETED, 1))
    asking = asyncio.create_task(session.link.admit(router_pb2.Admit(request_id="next")))
    messages = (await anext(session.sent)).messages
    assert [message.WhichOneof("message") for message in messages] == ["first_token", "done", "admit"]
    assert messages[0].age_seconds >= messages[2].age_seconds + 0.005
    asking.cancel()


async def test_a_place_that_others_want_is_given_back_sooner(session: _Session) -> None:
    link = session.link
    await session.ask("r")
    await session.place("r")
    link.first_token("r")
    link.done("r", PlacementEnd(Outcome.COMPLETED, 1))
    link._receive_all(router_pb2.RouterSessionResponses(places_wanted=True))
    async with asyncio.timeout(30):
        assert len((await anext(session.sent)).messages) == 2, "what waited before that was known"
        link.first_token("other")
        assert len((await anext(session.sent)).messages) == 1
