import pytest

from llmserve.scheduler.rate import ServiceRate


def test_unknown_rate_gives_the_longest() -> None:
    assert ServiceRate().wait_seconds(1, 0.0, longest=7.0) == 7.0


def test_only_time_with_a_backlog_counts() -> None:
    rate = ServiceRate()
    rate.departed(1.0)  # nobody waited: says nothing
    rate.backlog(True, 10.0)
    for end in (11.0, 12.0):
        rate.departed(end)
    rate.backlog(False, 12.0)
    assert rate.wait_seconds(5, 5000.0, longest=60.0) == pytest.approx(5.0)
    assert rate.wait_seconds(500, 5000.0, longest=60.0) == 60.0


def test_recent_service_counts_more() -> None:
    rate = ServiceRate()
    rate.backlog(True, 0.0)
    for second in range(1, 31):  # one each second, then ten
        rate.departed(float(second))
    for tenth in range(1, 1200):
        rate.departed(30.0 + tenth / 10)
    assert rate.wait_seconds(10, 150.0, longest=60.0) == pytest.approx(1.0, rel=0.1)


def test_departures_before_anybody_waits_say_nothing() -> None:
    rate = ServiceRate()
    rate.departed(5.0)
    assert rate.wait_seconds(1.0, 5.0, 99.0) == 99.0


def test_a_stall_with_a_backlog_makes_the_rate_smaller() -> None:
    rate = ServiceRate()
    rate.backlog(True, 0.0)
    rate.departed(1.0)
    assert rate.wait_seconds(2.0, 1.0, 99.0) == 2.0
    assert rate.wait_seconds(2.0, 4.0, 99.0) == 8.0
    assert rate.wait_seconds(2.0, 4.0, 5.0) == 5.0


def test_amounts_are_counted_as_such() -> None:
    rate = ServiceRate()
    rate.backlog(True, 0.0)
    rate.departed(2.0, 10.0)
    assert rate.wait_seconds(5.0, 2.0, 99.0) == 1.0


def test_older_service_counts_half_after_half_a_minute() -> None:
    rate = ServiceRate()
    rate.backlog(True, 0.0)
    for second in range(1, 31):
        rate.departed(float(second))
    assert rate.wait_seconds(1.0, 30.0, 99.0) == 1.0
    # 61 s of backlog count 30.5 now, and 30 departures count 15.
    assert rate.wait_seconds(1.0, 61.0, 99.0) == 30.5 / 15


def test_service_counts_half_after_30_seconds_with_a_backlog() -> None:
    rate = ServiceRate()
    rate.backlog(True, 0.0)
    rate.departed(31.0)  # 15.5 s are left of these
    assert rate.wait_seconds(1.0, 31.0, longest=99.0) == 15.5


def test_the_time_until_the_queue_empties_counts() -> None:
    rate = ServiceRate()
    rate.backlog(True, 0.0)
    rate.departed(2.0)
    rate.backlog(False, 4.0)
    assert rate.wait_seconds(1.0, 9.0, longest=99.0) == 4.0
