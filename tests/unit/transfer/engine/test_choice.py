"""The order of the manifest, corrected by what was measured and by what failed."""

from hypothesis import given
from hypothesis import strategies as st

from llmserve.transfer.engine.choice import LONGEST_PAUSE_SECONDS, Breaker, BreakerState, Measured, PairChoice

ORDER = ("nixl", "ucx", "tcp")


def _choice(**gigabytes: float) -> PairChoice:
    choice = PairChoice(ORDER, slow_factor=2.0)
    for name, speed in gigabytes.items():
        choice.probed(name, Measured(0.001, speed * 1e9), 0.0)
    return choice


class TestChoice:
    def test_the_first_of_the_order_wins(self) -> None:
        assert _choice(nixl=5, ucx=9, tcp=3).ranked(0.0) == ORDER

    def test_unless_a_later_one_is_far_faster(self) -> None:
        assert _choice(nixl=1, ucx=1.9, tcp=2.1).ranked(0.0) == ("tcp", "nixl", "ucx")

    def test_a_transport_of_unknown_speed_keeps_its_place(self) -> None:
        assert _choice(tcp=100).ranked(0.0) == ORDER
        assert _choice(nixl=1).ranked(0.0) == ORDER

    def test_what_failed_is_left_out_until_a_probe_works(self) -> None:
        choice = _choice(nixl=5, ucx=5, tcp=5)
        choice.failed("nixl", "broken pipe", 10.0)
        assert choice.ranked(10.0) == ("ucx", "tcp")
        assert choice.ranked(1000.0) == ("ucx", "tcp"), "only a probe closes a breaker"
        assert choice.due(10.5) == []
        assert choice.due(11.0) == ["nixl"]
        choice.probed("nixl", Measured(0.001, 5e9), 11.0)
        assert choice.ranked(11.0) == ORDER

    def test_with_nothing_left_the_first_to_return_is_tried(self) -> None:
        choice = _choice(nixl=5, ucx=5, tcp=5)
        for now, name in enumerate(("ucx", "nixl", "tcp")):
            choice.failed(name, "down", float(now))
        assert choice.ranked(2.0) == ("ucx", "nixl", "tcp")

    def test_all_are_probed_at_first(self) -> None:
        choice = _choice()
        assert choice.due(0.0) == list(ORDER)
        choice.probed("nixl", Measured(0.001, 1e9), 0.0)
        choice.failed("ucx", "no peer", 0.0)
        assert choice.due(0.0) == ["tcp"]
        assert choice.next_due() == 1.0

    def test_the_expected_time(self) -> None:
        choice = _choice(nixl=2)
        assert choice.expected_seconds("nixl", 2_000_000_000) == 1.001
        assert choice.expected_seconds("tcp", 1) is None

    def test_rows_say_what_happened(self) -> None:
        choice = _choice(nixl=2, tcp=1)
        choice.moved("tcp", 100, 0.5)
        choice.failed("nixl", "late", 5.0)
        nixl, ucx, tcp = choice.rows("prefill-0", 5.0)
        assert (nixl.breaker, nixl.reason, nixl.failures, nixl.chosen) == ("open", "late", 1, False)
        assert (ucx.chosen, ucx.bytes_per_second) == (True, 0.0)
        assert (tcp.transfers, tcp.bytes, tcp.seconds, tcp.chosen) == (1, 100, 0.5, False)

    @given(
        st.lists(st.sampled_from(ORDER), max_size=6),
        st.dictionaries(st.sampled_from(ORDER), st.floats(0.01, 100)),
    )
    def test_someone_is_always_asked_and_nobody_twice(
        self, failing: list[str], speeds: dict[str, float]
    ) -> None:
        choice = _choice(**speeds)
        for name in failing:
            choice.failed(name, "x", 1.0)
        ranked = choice.ranked(1.0)
        assert ranked
        assert len(set(ranked)) == len(ranked)
        assert set(ranked) == set(ORDER) - set(failing) or set(failing) == set(ORDER)


class TestBreaker:
    def test_the_pause_doubles_while_it_keeps_failing(self) -> None:
        breaker, now, pauses = Breaker(), 0.0, []
        for _ in range(9):
            breaker.failed("down", now)
            pauses.append(breaker.retry_at - now)
            now = breaker.retry_at
            assert breaker.state(now) is BreakerState.HALF_OPEN
        assert pauses[:4] == [1, 2, 4, 8]
        assert pauses[-1] == LONGEST_PAUSE_SECONDS

    def test_failures_together_are_one(self) -> None:
        breaker = Breaker()
        breaker.failed("a", 0.0)
        breaker.failed("b", 0.5)
        assert breaker.retry_at == 1.0
        assert breaker.reason == "b"

    def test_a_probe_that_was_on_its_way_proves_nothing(self) -> None:
        breaker = Breaker()
        breaker.failed("a", 0.0)
        breaker.succeeded(0.1)
        assert breaker.state(0.1) is BreakerState.OPEN

    def test_a_relapse_soon_after_counts_on(self) -> None:
        breaker = Breaker()
        breaker.failed("a", 0.0)
        breaker.succeeded(1.0)
        breaker.failed("a", 1.5)
        assert breaker.retry_at == 3.5

    def test_time_forgives(self) -> None:
        breaker = Breaker()
        breaker.failed("a", 0.0)
        breaker.succeeded(1.0)
        breaker.failed("a", 100.0)
        assert breaker.retry_at == 101.0
