"""Whatever a client sends to any route: 2xx or 4xx, in the error form, and never a closed connection.

LLMSERVE_ANY_REQUESTS=20000 sends so many; without it, as many as fit into a short time.
"""

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import status_code_conformance

from tests.support.any_request import AnyRequest, Route, any_requests, routes_of

_T = TypeVar("_T")
_ASKED = os.environ.get("LLMSERVE_ANY_REQUESTS")
_REQUESTS = int(_ASKED or 400)
_SECONDS = 4 * 3600.0 if _ASKED else 30.0
_ANSWER_SECONDS = 30.0
# They take no input; the answer of one is long, and that of the other does not end.
_NOT_TRIED = frozenset({"/metrics", "/admin/v1/events"})


class ClusterThread:
    """A FakeCluster that runs beside a test which is no coroutine, as those of hypothesis are."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_SECONDS)

    def close(self) -> None:
        self.run(self.cluster.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def threaded(make_cluster: Any, manifest: dict[str, Any]) -> Iterator[ClusterThread]:
    thread = ClusterThread(make_cluster())
    try:
        thread.run(thread.cluster.start(manifest))
        yield thread
    finally:
        thread.close()


@pytest.fixture(scope="module")
def client(threaded: ClusterThread) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=threaded.cluster.url, timeout=_ANSWER_SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def routes(client: httpx.Client) -> list[Route]:
    found = routes_of(client.get("/openapi.json").json())
    return [route for route in found if route.path not in _NOT_TRIED]


def ask(client: httpx.Client, request: AnyRequest) -> httpx.Response:
    headers = {name.encode(): text.encode("latin-1") for name, text in request.headers.items()}
    return client.request(request.method, request.path, content=request.body, headers=headers)


def fault_of(response: httpx.Response) -> str:
    """What is wrong with an answer, whatever was asked; empty when nothing is."""
    if response.status_code >= 500:
        return f"HTTP {response.status_code}"
    if response.status_code >= 400:
        message = response.json()["error"]["message"]
        return "" if isinstance(message, str) and message else "an error without a message"
    streams = response.headers.get("content-type", "").startswith("text/event-stream")
    return "an error within the stream" if streams and b'"error"' in response.content else ""


@pytest.mark.timeout(_SECONDS + 60)
def test_any_request_has_an_answer(
    threaded: ClusterThread, client: httpx.Client, routes: list[Route]
) -> None:
    until = time.monotonic() + _SECONDS

    @settings(max_examples=_REQUESTS, suppress_health_check=list(HealthCheck))
    @given(any_requests(routes))
    def answers(request: AnyRequest) -> None:
        if time.monotonic() < until:
            response = ask(client, request)
            assert not fault_of(response), (request, response.text)

    answers()
    cluster = threaded.cluster
    threaded.run(cluster.settled())
    assert not cluster.router.failed_workers
    assert not cluster.count("apiserver_retries_total", way="fresh")


def test_every_route_with_a_body_is_tried_from_a_valid_one(client: httpx.Client, routes: list[Route]) -> None:
    """Else all of the search would end at the first look."""
    with_body = [route for route in routes if route.bodies]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"} <= {
        route.path for route in with_body
    }
    for route in with_body:
        for body in route.bodies:
            response = client.request(route.method, route.path, json=body)
            assert response.status_code == 200, (route.path, body, response.text)


@pytest.mark.timeout(_SECONDS + 90)
def test_the_description_of_the_api_is_true(threaded: ClusterThread, client: httpx.Client) -> None:
    """Whatever it allows, and some that it does not, is answered with a status that it lists."""
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    found: list[Any] = [one.ok() for one in schema.get_all_operations()]  # type: ignore[union-attr]
    operations = [one for one in found if one.path not in _NOT_TRIED]
    assert len(operations) > 40
    until = time.monotonic() + _SECONDS / 2
    for index, operation in enumerate(operations):
        share = (until - time.monotonic()) / (len(operations) - index)
        _check(operation, str(threaded.cluster.url), time.monotonic() + share)
    threaded.run(threaded.cluster.settled())


class _EnoughError(Exception):
    """The time is over. Hypothesis would generate further requests for as long as it takes."""


def _check(operation: Any, url: str, until: float) -> None:
    """until: on the monotonic clock. At least one request is sent."""

    @settings(
        max_examples=_REQUESTS // 10,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy())
    def is_true(case: Any) -> None:
        answer = case.call(base_url=url, timeout=_ANSWER_SECONDS)
        case.validate_response(answer, checks=(not_a_server_error, status_code_conformance))
        if time.monotonic() > until:
            raise _EnoughError

    with suppress(_EnoughError):
        is_true()
