"""The router's span of a request: from its question for a place to the answer."""

from collections.abc import Callable
from typing import Any

import pytest

from llmserve.core.errors import LLMServeError
from llmserve.core.request import Outcome
from llmserve.router.events import Effect
from llmserve.router.observe import QueueSpans
from llmserve.router.sessions import RouterSession
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.scheduler.resources import ClusterLimits
from llmserve.scheduler.scheduler import Policy
from tests.support.spans import ROOT, KeptSpans


class Traced:
    """A cluster where one request runs at a time, and the spans of what happens there."""

    def __init__(self, cluster: Any, *, recording: bool = True) -> None:
        self.cluster, self.kept = cluster, KeptSpans(recording=recording)
        self.spans = QueueSpans(self.kept)
        self.session = cluster.open()

    def admit(
        self, name: str, traceparent: str = ROOT, session: RouterSession | None = None, **options: Any
    ) -> None:
        session = session or self.session
        admit = router_pb2.Admit(request_id=name, tenant="red", model="m", prompt_tokens=10)
        admit.traceparent = traceparent
        self.spans.asked(session, admit)
        self.record(self.cluster.admit(session, name, **options))

    def record(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.spans.record(effect)


@pytest.fixture
def cluster(make_cluster: Callable[..., Any]) -> Any:
    return make_cluster(
        "prefill-0", "decode-0", policy=Policy(limits=ClusterLimits(max_requests_in_flight=1))
    )


@pytest.fixture
def traced(cluster: Any) -> Traced:
    return Traced(cluster)


def test_a_placement_ends_it_with_the_workers(traced: Traced) -> None:
    traced.admit("a")
    span = traced.kept.only("queue")
    assert (span.parent, span.ended, span.error) == (ROOT, True, "")
    assert span.attributes == {
        "llmserve.request_id": "a",
        "llmserve.tenant": "red",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 10,
        "llmserve.prefill": "prefill-0",
        "llmserve.decode": "decode-0",
        "llmserve.queue.seconds": 0.0,
        "llmserve.queue.requests_ahead": 0,
        "llmserve.predicted_cached_tokens": 0,
    }


def test_one_that_waits_is_open_until_its_turn(traced: Traced) -> None:
    traced.admit("a")
    traced.admit("b")
    waits = traced.kept.spans[1]
    assert not waits.ended
    traced.cluster.clock.advance(2.0)
    traced.record(traced.cluster.done(traced.session, "a"))
    assert (waits.ended, waits.attributes["llmserve.queue.seconds"]) == (True, 2.0)


def test_a_refusal_is_an_error(traced: Traced) -> None:
    traced.admit("a")
    traced.admit("b", timeout=1.0)
    traced.record(traced.cluster.after(2.0))
    span = traced.kept.spans[1]
    assert isinstance(span.error, LLMServeError)
    assert span.attributes["llmserve.outcome"] == "evicted"


def test_one_that_is_withdrawn(traced: Traced) -> None:
    traced.admit("a")
    traced.admit("b")
    traced.record(traced.cluster.done(traced.session, "b", Outcome.CANCELLED))
    assert (traced.kept.spans[1].attributes["llmserve.outcome"], traced.kept.spans[1].error) == (
        "cancelled",
        "",
    )


def test_one_whose_apiserver_is_gone(traced: Traced) -> None:
    traced.admit("a")
    traced.admit("b")
    traced.record(traced.cluster.close(traced.session))
    assert traced.kept.spans[1].attributes["llmserve.outcome"] == "given_back"


def test_one_that_asks_again_while_it_waits(traced: Traced) -> None:
    traced.admit("a")
    traced.admit("b")
    traced.admit("b")
    first, second = traced.kept.spans[1:]
    assert (first.ended, first.attributes["llmserve.outcome"], second.ended) == (True, "replaced", False)
    traced.record(traced.cluster.done(traced.session, "a"))
    assert second.attributes["llmserve.decode"] == "decode-0"


def test_another_session_with_its_id_leaves_it_alone(traced: Traced) -> None:
    traced.admit("a")
    traced.admit("b")
    traced.admit("b", session=traced.cluster.open("other"))
    waits, refused = traced.kept.spans[1:]
    assert (waits.ended, refused.ended) == (False, True)
    assert str(refused.error) == "request id b is in use"
    traced.record(traced.cluster.done(traced.session, "a"))
    assert waits.attributes["llmserve.decode"] == "decode-0"


def test_a_router_that_leads_no_more_ends_all(traced: Traced) -> None:
    traced.admit("a")
    traced.admit("b")
    traced.spans.give_up()
    assert all(span.ended for span in traced.kept.spans)
    assert traced.kept.spans[1].error == "this router leads no more"


def test_what_is_not_traced_leaves_nothing(cluster: Any) -> None:
    traced = Traced(cluster, recording=False)
    traced.admit("a", traceparent="")
    assert traced.kept.spans == []
    traced.admit("b")  # of a trace that is not sampled
    assert not traced.kept.only("queue").ended
    traced.spans.give_up()
    assert not traced.kept.only("queue").ended
