"""What an apiserver remembers of its requests at the router."""

import asyncio

import pytest

from llmserve.apiserver.links.requests import AdmissionRefused, RoutedRequest, RoutedRequests
from llmserve.core.errors import RouterUnavailable
from llmserve.core.request import Outcome
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2

PLACEMENT = router_pb2.Placement(
    prefill=common_pb2.WorkerInfo(worker_id="p"), decode=common_pb2.WorkerInfo(worker_id="d")
)


def _add(requests: RoutedRequests, name: str) -> RoutedRequest:
    return requests.add(router_pb2.Admit(request_id=name, tenant="t"), lambda placed: None)


def _placed(name: str) -> router_pb2.Placed:
    return router_pb2.Placed(request_id=name, placement=PLACEMENT)


async def test_a_placement_is_held_until_the_request_ends() -> None:
    requests = RoutedRequests()
    request = _add(requests, "r")
    requests.placed(_placed("r"))
    assert await request.answer == PLACEMENT
    assert [(one.request_id, one.tenant) for one in requests.held()] == [("r", "t")]
    assert not list(requests.waiting())
    assert requests.end("r") is request
    assert requests.end("r") is None
    assert not list(requests.held())


async def test_after_the_first_token_only_decode_is_held() -> None:
    requests = RoutedRequests()
    _add(requests, "r")
    requests.placed(_placed("r"))
    requests.prefilled("r")
    (held,) = requests.held()
    assert held.placement == router_pb2.Placement(decode=PLACEMENT.decode)


async def test_another_router_hears_of_the_tokens_that_one_was_told_of() -> None:
    requests = RoutedRequests()
    _add(requests, "r")
    requests.placed(_placed("r"))
    assert [one.output_tokens for one in requests.held()] == [0]
    requests.progressed("r", 256)
    requests.progressed("gone", 256)
    assert [one.output_tokens for one in requests.held()] == [256]


async def test_a_router_that_is_asked_again_is_told_so() -> None:
    request = _add(RoutedRequests(), "r")
    assert [request.ask().again for _ in range(3)] == [False, True, True]


async def test_only_waiting_requests_are_refused_when_no_router_comes() -> None:
    requests = RoutedRequests()
    waiting = [_add(requests, name) for name in ("a", "b")]
    _add(requests, "held")
    requests.placed(_placed("held"))
    requests.refuse_waiting(lambda: RouterUnavailable("away"))
    errors = await asyncio.gather(*(request.answer for request in waiting), return_exceptions=True)
    first, second = [error.error for error in errors if isinstance(error, AdmissionRefused)]
    assert first is not second, "each has its own traceback"
    assert len(list(requests.held())) == 1
    assert not list(requests.waiting())


async def test_a_refusal_carries_the_router_s_error_and_ends_the_request() -> None:
    requests = RoutedRequests()
    request = _add(requests, "r")
    refused = router_pb2.Refused(
        request_id="r",
        error="queue_full",
        message="full",
        retry_after_seconds=3,
        outcome=common_pb2.OUTCOME_REJECTED,
    )
    requests.refused(refused)
    with pytest.raises(AdmissionRefused) as raised:
        await request.answer
    assert raised.value.outcome is Outcome.REJECTED
    assert raised.value.error.retry_after_seconds == 3
    assert requests.end("r") is None
    requests.refused(refused)
    requests.placed(_placed("r"))
