"""The link of an engine to a real gRPC server that is a KV manager, is away, hangs, or is another one."""

import time
from collections.abc import Iterator
from concurrent import futures
from threading import Event
from typing import Any

import grpc
import pytest

from llmserve.engines.store.link import StoreAnswer, StoreLink, StoreQuery
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2 as pb
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2_grpc as rpc

SECONDS = 30.0
ASK = StoreQuery("r", "red", [b"h" * 32], 0, load=True, compute_seconds=0.5, timeout_seconds=2.0)


class Manager(rpc.KVManagerServicer):
    def __init__(self, arena: str) -> None:
        self.arena = arena
        self.goes_on = Event()
        self.goes_on.set()
        self.asked: list[pb.PreparePromptRequest] = []
        self.settled: list[pb.SettleStoreRequest] = []

    def AttachStore(self, request: pb.AttachStoreRequest, context: Any) -> pb.AttachStoreResponse:  # noqa: N802
        return pb.AttachStoreResponse(
            enabled=True, arena=self.arena, lease_seconds=30.0, arena_id=f"id of {self.arena}"
        )

    def PreparePrompt(self, request: pb.PreparePromptRequest, context: Any) -> pb.PreparePromptResponse:  # noqa: N802
        self.goes_on.wait(SECONDS)
        self.asked.append(request)
        return pb.PreparePromptResponse(lease_id="L")

    def SettleStore(self, request: pb.SettleStoreRequest, context: Any) -> pb.SettleStoreResponse:  # noqa: N802
        self.settled.append(request)
        return pb.SettleStoreResponse()


class Place:
    """A port where a manager is, or not."""

    def __init__(self) -> None:
        self._server: Any = None
        self.port = 0

    def open(self, manager: Manager) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        rpc.add_KVManagerServicer_to_server(manager, self._server)  # type: ignore[no-untyped-call]
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def close(self) -> None:
        if self._server:
            self._server.stop(None).wait(SECONDS)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


@pytest.fixture
def manager(place: Place) -> Manager:
    made = Manager("one")
    place.open(made)
    return made


@pytest.fixture
def link(place: Place, manager: Manager) -> Iterator[StoreLink]:
    made = StoreLink(f"127.0.0.1:{place.port}", "w", 1, [100])
    yield made
    made.close()


def answer_of(link: StoreLink) -> StoreAnswer:
    began = time.monotonic()
    link.prepare(ASK)
    assert time.monotonic() - began < ASK.timeout_seconds / 2, "nobody waits"
    answers: list[StoreAnswer] = []
    while not answers:
        assert time.monotonic() - began < SECONDS
        time.sleep(0.005)
        answers = link.take_answers()
    (answer,) = answers
    return answer


def until_attached(link: StoreLink, arena: str) -> None:
    deadline = time.monotonic() + SECONDS
    while answer_of(link).arena != arena:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_asks_and_settles_what_is_in_the_memory_of_this_manager(link: StoreLink, manager: Manager) -> None:
    until_attached(link, "one")
    answer = answer_of(link)
    assert answer.prepared.lease_id == "L"
    assert time.monotonic() < answer.usable_until < time.monotonic() + 30.0
    asked = manager.asked[-1]
    assert (asked.worker_id, asked.tenant, asked.load, asked.store) == ("w", "red", True, True)
    assert asked.compute_seconds == 0.5
    assert asked.arena_id == "id of one"
    link.settle("earlier", releases=["K"])
    link.settle("one", releases=["L"])
    deadline = time.monotonic() + SECONDS
    while not manager.settled:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (settled,) = manager.settled
    assert (list(settled.releases), settled.arena_id) == (["L"], "id of one"), (
        "not what is gone with its memory"
    )


def test_one_that_hangs_delays_only_those_who_had_asked(link: StoreLink, manager: Manager) -> None:
    until_attached(link, "one")
    manager.goes_on.clear()
    began = time.monotonic()
    assert answer_of(link).arena == ""
    assert ASK.timeout_seconds - 0.1 < time.monotonic() - began < SECONDS
    manager.goes_on.set()
    until_attached(link, "one")


def test_one_that_is_away_costs_nothing_and_its_successor_is_used(
    link: StoreLink, place: Place, manager: Manager
) -> None:
    until_attached(link, "one")
    place.close()
    for _ in range(5):
        began = time.monotonic()
        assert answer_of(link).arena == ""
        assert time.monotonic() - began < ASK.timeout_seconds / 2
    place.open(Manager("two"))
    until_attached(link, "two")


def test_it_may_be_closed_at_any_time(link: StoreLink, manager: Manager) -> None:
    until_attached(link, "one")
    manager.goes_on.clear()
    link.prepare(ASK)
    link.settle("one", releases=["L"])
    link.close()
    link.close()
    manager.goes_on.set()
