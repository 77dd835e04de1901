from collections.abc import Callable
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import WorkerId
from llmserve.router.placement.filters import NotSlow
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.workers.speed import (
    MeasuredSpeed,
    SlowLimits,
    SpeedStage,
    WorkerSpeeds,
    _median_without,
)
from llmserve.router.workers.worker import ClusterMember, WorkerSlots, WorkerSpec

LIMITS = SlowLimits(factor=3.0, samples=5, remembered=9, memory_seconds=60.0)


class Book:
    """Runs requests of 1,000 prompt tokens and 11 output tokens."""

    def __init__(self, clock: VirtualClock, make_spec: Callable[..., WorkerSpec], workers: int) -> None:
        self.clock = clock
        self.speeds = WorkerSpeeds(clock, LIMITS)
        names = [f"{role}-{index}" for role in ("prefill", "decode") for index in range(workers)]
        self.members = {name: ClusterMember(make_spec(name), WorkerSlots(), 0.0) for name in names}

    def request(
        self, prefill: str, decode: str, first_seconds: float = 0.2, token_seconds: float = 0.02
    ) -> None:
        self.clock.advance(first_seconds)
        self.speeds.prompt_computed(self.members[prefill], 1000, first_seconds, None)
        self.clock.advance(10 * token_seconds)
        self.speeds.answer_generated(self.members[decode], 10, 10 * token_seconds, None)

    def rounds(self, count: int, **slow: float) -> None:
        """decode-0 and prefill-0 take `slow`, the others the usual."""
        for _ in range(count):
            for index in range(len(self.members) // 2):
                self.request(f"prefill-{index}", f"decode-{index}", **(slow if index == 0 else {}))

    def prompts(self, count: int, **seconds: float) -> None:
        """Each worker computes a prompt each second, in this order. seconds: what it takes for a prompt."""
        for _ in range(count):
            self.clock.advance(1.0)
            for name, of_prompt in seconds.items():
                self.speeds.prompt_computed(self.members[name.replace("_", "-")], 1000, of_prompt, None)

    def slow(self) -> set[str]:
        return set(self.speeds.slow_reasons())

    def kept(self) -> list[str]:
        members = [self.members[name] for name in self.members if name.startswith("decode")]
        return [
            m.spec.worker_id for m in NotSlow(self.speeds.slow_names).keep(members, PlacementRequest("m"))
        ]


@pytest.fixture
def book(clock: VirtualClock, make_spec: Callable[..., WorkerSpec]) -> Book:
    return Book(clock, make_spec, workers=3)


def test_equal_workers_are_not_slow(book: Book) -> None:
    book.rounds(10)
    assert book.slow() == set()


def test_a_slow_decode_worker_is_found_and_avoided(book: Book) -> None:
    book.rounds(6, token_seconds=0.1)
    assert book.slow() == {"decode-0"}
    assert "100 ms for each token, the others 20 ms" in book.speeds.slow_reasons()[WorkerId("decode-0")]
    assert book.kept() == ["decode-1", "decode-2"]


def test_a_slow_prefill_worker_is_found(book: Book) -> None:
    book.rounds(6, first_seconds=1.0)
    assert book.slow() == {"prefill-0"}


def test_few_samples_prove_nothing(book: Book) -> None:
    book.rounds(4, token_seconds=0.1)
    assert book.slow() == set()


def test_five_samples_are_enough(book: Book) -> None:
    book.prompts(4, prefill_1=0.2, prefill_2=0.2, prefill_0=1.0)
    assert book.slow() == set()
    book.prompts(1, prefill_1=0.2, prefill_2=0.2, prefill_0=1.0)
    assert book.slow() == {"prefill-0"}


def test_one_other_worker_is_enough_to_compare_with(book: Book) -> None:
    book.prompts(5, prefill_1=0.2, prefill_0=1.0)
    assert book.slow() == {"prefill-0"}


@pytest.mark.parametrize(
    ("usual", "seconds", "slow"),
    [
        (0.125, 0.375, False),  # three times as long, and not more
        (0.125, 0.376, True),
        (0.025, 0.125, False),  # 100 ms more are not noticed
        (0.025, 0.126, True),
    ],
)
def test_slow_is_above_three_times_the_others_and_noticeable(
    book: Book, usual: float, seconds: float, slow: bool
) -> None:
    book.prompts(5, prefill_1=usual, prefill_2=usual, prefill_0=seconds)
    assert book.slow() == ({"prefill-0"} if slow else set())


def test_a_slow_worker_is_slow_until_it_is_below_half_of_that(book: Book) -> None:
    book.prompts(9, prefill_1=0.4, prefill_2=0.4, prefill_0=2.0)
    book.prompts(9, prefill_1=0.4, prefill_2=0.4, prefill_0=0.61)
    assert book.slow() == {"prefill-0"}
    book.prompts(9, prefill_1=0.4, prefill_2=0.4, prefill_0=0.59)
    assert book.slow() == set()


def test_a_sample_expires_after_its_time(book: Book) -> None:
    book.prompts(5, prefill_1=0.2, prefill_2=0.2, prefill_0=0.2)
    book.clock.advance(55.0)
    book.prompts(2, prefill_1=0.2, prefill_2=0.2, prefill_0=0.5)
    book.prompts(3, prefill_1=0.2, prefill_2=0.2, prefill_0=0.65)
    assert book.slow() == {"prefill-0"}, "the fifth is 60 s old; with it, the median would be 0.575 s"
    book.clock.advance(59.5)
    assert book.slow() == {"prefill-0"}
    book.clock.advance(0.5)
    assert book.slow() == set()


def test_workers_without_samples_are_forgotten_when_others_are_heard(book: Book) -> None:
    book.prompts(5, prefill_1=0.2, prefill_2=0.2, prefill_0=1.0)
    book.clock.advance(61)
    book.prompts(1, prefill_1=0.2)
    assert book.slow() == set()
    assert [set(of_group) for of_group in book.speeds._recent.values()] == [{"prefill-1"}]


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
        book.speeds.stalled(WorkerId(f"decode-{index}"))
    assert len(book.kept()) == 3


def test_a_stall_counts_at_once_and_passes(book: Book) -> None:
    book.speeds.stalled(WorkerId("decode-1"))
    assert book.slow() == {"decode-1"}
    book.clock.advance(60)
    assert book.slow() == set()


def test_workers_that_come_and_go_are_forgotten_though_nobody_asks(book: Book) -> None:
    for number in range(5):
        book.speeds.stalled(WorkerId(f"gone-{number}"))
        book.clock.advance(61)
    assert len(book.speeds._stalled) == 1


def test_a_worker_alone_is_never_slow(clock: VirtualClock, make_spec: Callable[..., WorkerSpec]) -> None:
    alone = Book(clock, make_spec, workers=1)
    alone.rounds(10, token_seconds=5.0)
    assert alone.slow() == set()


def test_each_worker_is_measured_beside_its_peers(book: Book) -> None:
    book.prompts(5, prefill_0=0.5, prefill_1=0.125, prefill_2=0.25, decode_0=0.75)
    measured = book.speeds.measured()
    assert measured == {
        "prefill-0": [MeasuredSpeed(SpeedStage.FIRST_TOKEN, 0.5, 0.1875)],
        "prefill-1": [MeasuredSpeed(SpeedStage.FIRST_TOKEN, 0.125, 0.375)],
        "prefill-2": [MeasuredSpeed(SpeedStage.FIRST_TOKEN, 0.25, 0.3125)],
        "decode-0": [MeasuredSpeed(SpeedStage.FIRST_TOKEN, 0.75, None)],
    }
    book.rounds(1)
    assert [one.stage for one in book.speeds.measured()[WorkerId("decode-0")]] == list(SpeedStage)
    book.clock.advance(61)
    assert book.speeds.measured() == {}


def test_few_samples_are_compared_with_nobody_and_nobody_with_them(book: Book) -> None:
    book.prompts(1, prefill_0=0.3)
    book.prompts(4, prefill_0=0.3, prefill_1=0.1)
    measured = book.speeds.measured()
    assert measured[WorkerId("prefill-0")] == [MeasuredSpeed(SpeedStage.FIRST_TOKEN, 0.3, None)]
    assert measured[WorkerId("prefill-1")] == [MeasuredSpeed(SpeedStage.FIRST_TOKEN, 0.1, None)]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.data())
def test_the_median_of_the_others_is_that(values: list[int], data: st.DataObject) -> None:
    own = data.draw(st.sampled_from(values))
    others = [*values]
    others.remove(own)
    assert _median_without(sorted(values), own) == median(others)


@pytest.mark.parametrize(("tokens", "found"), [(7, False), (8, True)])
def test_short_answers_prove_nothing(book: Book, tokens: int, found: bool) -> None:
    book.rounds(10)
    for _ in range(10):
        book.clock.advance(1.0)
        book.speeds.answer_generated(book.members["decode-0"], tokens, 1.0, 1.0)
    assert (book.slow() == {"decode-0"}) is found
    assert (book.members["decode-0"].slots.latency is not None) is found


def test_a_short_prompt_counts_as_a_step_of_256_tokens(book: Book) -> None:
    for _ in range(10):
        for index, seconds in enumerate((0.4, 0.05, 0.05)):
            book.clock.advance(seconds)
            book.speeds.prompt_computed(book.members[f"prefill-{index}"], 1, seconds, None)
    reason = book.speeds.slow_reasons()[WorkerId("prefill-0")]
    assert reason == "slow at first token: 1562 ms for each 1,000 prompt tokens, the others 195 ms"


def test_a_worker_that_speculates_is_as_fast_as_its_tokens_not_its_steps(book: Book) -> None:
    """Both take 50 steps of 20 ms for their answer; one of them gets two tokens in each."""
    plain, speculating = book.members["decode-0"], book.members["decode-1"]
    for _ in range(60):
        book.speeds.answer_generated(plain, tokens=50, seconds=1.0, running=1.0)
        book.speeds.answer_generated(speculating, tokens=100, seconds=1.0, running=1.0)
    seconds = [m.slots.latency.decode.seconds(1.0) for m in (plain, speculating) if m.slots.latency]
    assert seconds == pytest.approx([0.02, 0.01], rel=0.05)


def test_what_was_measured_is_predicted_for_the_worker_and_its_model(book: Book) -> None:
    for _ in range(200):
        book.speeds.prompt_computed(book.members["prefill-0"], 1000, 9.0, 2.0)
        book.speeds.answer_generated(book.members["decode-0"], 10, 0.5, 4.0)
    for model in (book.members["prefill-0"].slots.latency, book.speeds.of_model("m")):
        assert model is not None
        assert model.prefill.seconds(1000) == pytest.approx(2.0, rel=0.05)
    for model in (book.members["decode-0"].slots.latency, book.speeds.of_model("m")):
        assert model is not None
        assert model.decode.seconds(4) == pytest.approx(0.05, rel=0.1)


def test_a_worker_starts_as_its_model_and_then_goes_its_own_way(book: Book) -> None:
    for _ in range(200):
        book.speeds.prompt_computed(book.members["prefill-0"], 1000, 2.0, 2.0)
    book.speeds.prompt_computed(book.members["prefill-1"], 1000, 2.0, 2.0)
    newcomer = book.members["prefill-1"].slots.latency
    assert newcomer is not None
    assert newcomer.prefill.seconds(1000) == pytest.approx(2.0, rel=0.1)
    for _ in range(50):
        book.speeds.prompt_computed(book.members["prefill-1"], 1000, 6.0, 6.0)
    of_other = book.members["prefill-0"].slots.latency
    assert of_other is not None
    assert newcomer.prefill.seconds(1000) > 2 * of_other.prefill.seconds(1000)


def test_a_load_that_took_longer_than_predicted_is_no_negative_time(book: Book) -> None:
    book.speeds.prompt_computed(book.members["prefill-0"], 1000, 1.0, -5.0)
    assert book.speeds.of_model("m").prefill.seconds(1000) >= 0.0
