"""What the link to the router sends at once, and what waits. tests/integration/routers has the rest."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from llmserve.apiserver.links.requests import PlacementEnd
from llmserve.apiserver.links.router import RouterLink
from llmserve.core.ids import ApiserverId
from llmserve.core.outcome import Outcome
from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import RouterAddresses
from llmserve.rpc.outbox import Outbox


@pytest.mark.parametrize("is_limited", [True, False])
async def test_the_end_of_a_request_of_a_limited_key_waits_for_nothing(is_limited: bool) -> None:
    link = RouterLink(RouterAddresses(("router:1",)), ApiserverId("a"), ApiserverMetrics(CollectorRegistry()))
    outbox: Outbox[router_pb2.RouterSessionRequest] = Outbox()
    link._outbox = outbox
    admit = router_pb2.Admit(request_id="r")
    if is_limited:
        admit.key_limits.SetInParent()
    asking = asyncio.create_task(link.admit(admit))
    await asyncio.sleep(0)
    link.done("r", PlacementEnd(Outcome.CANCELLED, 0))
    asking.cancel()
    sent = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sent.done() is is_limited
    assert [message.done.request_id for message in await sent] == ["r"]
