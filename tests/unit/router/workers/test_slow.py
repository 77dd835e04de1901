from collections.abc import Callable

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import WorkerId
from llmserve.router.placement.planner import PlacementRequest, Plan
from llmserve.router.sessions import Work
from llmserve.router.workers.slow import NotSlow, SlowLimits, SlowWorkers
from llmserve.router.workers.worker import ClusterMember, WorkerSlots, WorkerSpec

LIMITS = SlowLimits(factor=3.0, samples=5, remembered=9, memory_seconds=60.0)


class Book:
    """Runs requests of 1,000 prompt tokens and 11 output tokens."""

    def __init__(self, clock: VirtualClock, make_spec: Callable[..., WorkerSpec], workers: int) -> None:
        self.clock = clock
        self.book = SlowWorkers(clock, LIMITS)
        names = [f"{role}-{index}" for role in ("prefill", "decode") for index in range(workers)]
        self.members = {name: ClusterMember(make_spec(name), WorkerSlots(), 0.0) for name in names}

    def request(
        self, prefill: str, decode: str, first_seconds: float = 0.2, token_seconds: float = 0.02
    ) -> None:
        plan = Plan(self.members[prefill], self.members[decode], computed_tokens=1000)
        work = Work.of(plan, PlacementRequest("m", 1000), 11, self.clock.now())
        self.clock.advance(first_seconds)
        self.book.first_token(work)
        work.first_token_at = self.clock.now()
        self.clock.advance(10 * token_seconds)
        self.book.ended(work, output_tokens=11)

    def rounds(self, count: int, **slow: float) -> None:
        """decode-0 and prefill-0 take `slow`, the others the usual."""
        for _ in range(count):
            for index in range(len(self.members) // 2):
                self.request(f"prefill-{index}", f"decode-{index}", **(slow if index == 0 else {}))

    def slow(self) -> set[str]:
        return set(self.book.workers())

    def kept(self) -> list[str]:
        members = [self.members[name] for name in self.members if name.startswith("decode")]
        return [m.spec.worker_id for m in NotSlow(self.book).keep(members, PlacementRequest("m"))]


@pytest.fixture
def book(clock: VirtualClock, make_spec: Callable[..., WorkerSpec]) -> Book:
    return Book(clock, make_spec, workers=3)


def test_equal_workers_are_not_slow(book: Book) -> None:
    book.rounds(10)
    assert book.slow() == set()


def test_a_slow_decode_worker_is_found_and_avoided(book: Book) -> None:
    book.rounds(6, token_seconds=0.1)
    assert book.slow() == {"decode-0"}
    assert "100 ms for each token, the others 20 ms" in book.book.workers()[WorkerId("decode-0")]
    assert book.kept() == ["decode-1", "decode-2"]


def test_a_slow_prefill_worker_is_found(book: Book) -> None:
    book.rounds(6, first_seconds=1.0)
    assert book.slow() == {"prefill-0"}


def test_few_samples_prove_nothing(book: Book) -> None:
    book.rounds(4, token_seconds=0.1)
    assert book.slow() == set()


def test_twice_as_slow_is_not_slow_yet_and_no_longer_fast_again(book: Book) -> None:
    book.rounds(10, token_seconds=0.04)
    assert book.slow() == set()
    book.rounds(10, token_seconds=0.1)
    book.rounds(10, token_seconds=0.04)
    assert book.slow() == {"decode-0"}, "it would flutter"
    book.rounds(10)
    assert book.slow() == set()


def test_what_no_user_notices_is_not_slow(book: Book) -> None:
    for _ in range(10):
        book.request("prefill-0", "decode-0", 0.04, 0.004)
        book.request("prefill-1", "decode-1", 0.001, 0.0001)
    assert book.slow() == set()


def test_one_that_is_avoided_is_tried_again_after_a_while(book: Book) -> None:
    book.rounds(6, token_seconds=0.1)
    book.clock.advance(61)
    assert book.slow() == set()


def test_all_are_used_when_all_are_slow(book: Book) -> None:
    for index in range(3):
        book.book.stalled(WorkerId(f"decode-{index}"))
    assert len(book.kept()) == 3


def test_a_stall_counts_at_once_and_passes(book: Book) -> None:
    book.book.stalled(WorkerId("decode-1"))
    assert book.slow() == {"decode-1"}
    book.clock.advance(60)
    assert book.slow() == set()


def test_workers_that_come_and_go_are_forgotten_though_nobody_asks(book: Book) -> None:
    for number in range(5):
        book.book.stalled(WorkerId(f"gone-{number}"))
        book.clock.advance(61)
    assert len(book.book._stalled) == 1


def test_a_worker_alone_is_never_slow(clock: VirtualClock, make_spec: Callable[..., WorkerSpec]) -> None:
    alone = Book(clock, make_spec, workers=1)
    alone.rounds(10, token_seconds=5.0)
    assert alone.slow() == set()


def test_nothing_is_learnt_from_what_another_router_placed(book: Book) -> None:
    book.rounds(10)
    for _ in range(10):
        adopted = Work()
        book.book.first_token(adopted)
        adopted.first_token_at = book.clock.now()
        book.clock.advance(5.0)
        book.book.ended(adopted, output_tokens=11)
    assert book.slow() == set()


def test_nothing_is_learnt_from_what_ends_without_a_token(book: Book) -> None:
    book.rounds(10)
    placement = PlacementRequest("m", 1000)
    for _ in range(10):
        work = Work.of(Plan(None, book.members["decode-0"]), placement, 11, book.clock.now())
        book.clock.advance(5.0)
        book.book.ended(work, output_tokens=11)
    assert book.slow() == set()
