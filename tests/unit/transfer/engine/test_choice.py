"""The order of the manifest, corrected by what was measured and by what failed."""

from hypothesis import given
from hypothesis import strategies as st

from llmserve.transfer.engine.choice import Breaker, BreakerState, Measured, PairChoice

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

    def test_even_of_two_that_crawl_the_far_faster_one_wins(self) -> None:
        choice = _choice()
        for name, bytes_per_second in (("nixl", 0.25), ("ucx", 0.75)):
            choice.probed(name, Measured(0.001, bytes_per_second), 0.0)
        assert choice.ranked(0.0) == ("ucx", "nixl", "tcp")

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
        assert (ucx.chosen, ucx.small_seconds, ucx.bytes_per_second) == (True, 0.0, 0.0)
        assert (tcp.transfers, tcp.bytes, tcp.seconds, tcp.chosen) == (1, 100, 0.5, False)

    def test_exactly_the_factor_faster_is_not_enough(self) -> None:
        assert _choice(nixl=1, ucx=2.0).ranked(0.0) == ORDER
        assert _choice(nixl=1, ucx=2.1, tcp=4.2).ranked(0.0) == ("ucx", "nixl", "tcp")
        assert _choice(nixl=1, ucx=2.1, tcp=4.3).ranked(0.0) == ("tcp", "nixl", "ucx")

    def test_it_works_while_a_breaker_is_closed(self) -> None:
        choice = _choice()
        assert choice.works(0.0)
        for name in ORDER:
            assert choice.works(0.0)
            choice.failed(name, "down", 0.0)
        assert not choice.works(0.0)
        assert not choice.works(99.0), "only a probe closes a breaker"
        choice.probed("tcp", Measured(0.001, 1e9), 99.0)
        assert choice.works(99.0)

    def test_a_measured_transport_is_due_only_after_a_failure(self) -> None:
        choice = _choice(nixl=1, ucx=1, tcp=1)
        assert choice.due(0.0) == []
        assert choice.next_due() == float("inf")
        choice.failed("ucx", "down", 0.0)
        assert choice.next_due() == 1.0
        assert choice.reason("ucx") == "down"
        choice.probed("ucx", Measured(0.002, 2e9), 1.0)
        assert choice.reason("ucx") == ""
        assert choice.next_due() == float("inf")
        assert choice.expected_seconds("ucx", 4_000_000_000) == 2.002

    def test_counts_add_up(self) -> None:
        choice = _choice(tcp=1)
        choice.moved("tcp", 100, 0.5)
        choice.moved("tcp", 50, 0.25)
        choice.failed("tcp", "a", 0.0)
        choice.failed("tcp", "b", 0.0)
        row = list(choice.rows("prefill-0", 0.0))[2]
        assert (row.peer, row.transport, row.transfers, row.bytes, row.seconds, row.failures) == (
            "prefill-0",
            "tcp",
            2,
            150,
            0.75,
            2,
        )
        assert (row.small_seconds, row.bytes_per_second) == (0.001, 1e9)

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
        assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]

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

    def test_it_is_closed_until_it_fails(self) -> None:
        breaker = Breaker()
        assert breaker.state(0.0) is BreakerState.CLOSED
        assert (breaker.retry_at, breaker.reason) == (float("inf"), "")
        breaker.succeeded(0.0)
        assert breaker.state(0.0) is BreakerState.CLOSED

    def test_the_pause_ends_at_its_time(self) -> None:
        breaker = Breaker()
        breaker.failed("a", 5.0)
        assert breaker.state(5.999) is BreakerState.OPEN
        assert breaker.state(6.0) is BreakerState.HALF_OPEN
        breaker.succeeded(6.0)
        assert (breaker.state(6.0), breaker.retry_at, breaker.reason) == (
            BreakerState.CLOSED,
            float("inf"),
            "",
        )

    def test_twice_the_pause_later_is_no_relapse(self) -> None:
        breaker = Breaker()
        breaker.failed("a", 0.0)
        breaker.succeeded(1.0)
        breaker.failed("a", 3.0)
        assert breaker.retry_at == 4.0

    def test_the_longer_the_pause_was_the_longer_a_failure_is_a_relapse(self) -> None:
        for failed_at, pause in ((6.5, 4.0), (7.0, 1.0)):
            breaker = Breaker()
            breaker.failed("a", 0.0)
            breaker.failed("a", 1.0)
            breaker.succeeded(3.0)  # after a pause of 2 s
            breaker.failed("a", failed_at)
            assert breaker.retry_at == failed_at + pause
