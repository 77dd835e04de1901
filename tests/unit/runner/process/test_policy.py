"""Whether and when a role is started again, and the order of the stop."""

import random

import pytest

from llmserve.config.plan import ProcessRole, ProcessSpec
from llmserve.rpc.client import Backoff
from llmserve.runner.process.policy import (
    MAX_START_FAILURES,
    STABLE_SECONDS,
    Decision,
    RestartPolicy,
    exit_text,
    stop_seconds,
    stop_stages,
)


class NoJitter(random.Random):
    def random(self) -> float:
        return 1.0


@pytest.fixture
def policy() -> RestartPolicy:
    """Waits 1, 2, 4, 8, 8, ... seconds."""
    return RestartPolicy(Backoff(1.0, 8.0, rng=NoJitter()))


def spec(role: ProcessRole, index: int = 0) -> ProcessSpec:
    return ProcessSpec(role=role, name=f"{role}-{index}", module="m")


def test_a_role_that_was_never_ready_is_given_up_after_three_tries(policy: RestartPolicy) -> None:
    decisions = [policy.ended(ready=False, ran_seconds=0.0) for _ in range(MAX_START_FAILURES)]
    assert decisions == [
        Decision(restart=True, wait_seconds=1.0),
        Decision(restart=True, wait_seconds=2.0),
        Decision(restart=False),
    ]


def test_what_another_try_would_not_cure_is_tried_once(policy: RestartPolicy) -> None:
    assert policy.ended(ready=False, ran_seconds=0.0, lasts=True) == Decision(restart=False)


def test_one_that_was_ready_is_tried_again_whatever_it_says(policy: RestartPolicy) -> None:
    """Somebody may put it right meanwhile."""
    policy.ended(ready=True, ran_seconds=1.0)
    assert policy.ended(ready=False, ran_seconds=0.0, lasts=True).restart


def test_one_that_was_ready_is_tried_for_good_ever_more_slowly(policy: RestartPolicy) -> None:
    decisions = [policy.ended(ready=True, ran_seconds=1.0)]
    decisions += [policy.ended(ready=False, ran_seconds=0.0) for _ in range(2 * MAX_START_FAILURES)]
    assert all(decision.restart for decision in decisions)
    assert [decision.wait_seconds for decision in decisions] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0]


def test_failures_before_it_was_ready_are_forgotten(policy: RestartPolicy) -> None:
    for _ in range(MAX_START_FAILURES - 1):
        policy.ended(ready=False, ran_seconds=0.0)
    assert policy.ended(ready=True, ran_seconds=0.0) == Decision(restart=True, wait_seconds=4.0)
    assert policy.ended(ready=False, ran_seconds=0.0).restart


@pytest.mark.parametrize(
    ("ran_seconds", "next_wait"), [(STABLE_SECONDS, 1.0), (STABLE_SECONDS - 0.01, 4.0), (0.0, 4.0)]
)
def test_time_without_a_crash_is_forgiven(
    policy: RestartPolicy, ran_seconds: float, next_wait: float
) -> None:
    policy.ended(ready=True, ran_seconds=0.0)
    policy.ended(ready=True, ran_seconds=0.0)
    assert policy.ended(ready=True, ran_seconds=ran_seconds).wait_seconds == next_wait


def test_what_admits_stops_first_and_what_all_report_to_last() -> None:
    started = [
        spec(ProcessRole.KVMANAGER),
        spec(ProcessRole.ROUTER),
        spec(ProcessRole.PREFILL),
        spec(ProcessRole.DECODE),
        spec(ProcessRole.DECODE, 1),
        spec(ProcessRole.APISERVER),
        spec(ProcessRole.APISERVER, 1),
    ]
    assert [[one.name for one in stage] for stage in stop_stages(started)] == [
        ["apiserver-0", "apiserver-1"],
        ["prefill-0", "decode-0", "decode-1"],
        ["router-0"],
        ["kvmanager-0"],
    ]


def test_control_outlives_its_workers() -> None:
    stages = stop_stages([spec(ProcessRole.CONTROL), spec(ProcessRole.AGGREGATED)])
    assert [[one.name for one in stage] for stage in stages] == [["aggregated-0"], ["control-0"]]


@pytest.mark.parametrize("role", [role for role in ProcessRole if role is not ProcessRole.MODELMANAGER])
def test_every_role_is_stopped_once_within_its_time(role: ProcessRole) -> None:
    assert stop_stages([spec(role)]) == [[spec(role)]]
    assert stop_seconds(role) in (5.0, 10.0, 20.0)


def test_workers_get_the_time_to_drain() -> None:
    for role in (ProcessRole.PREFILL, ProcessRole.DECODE, ProcessRole.AGGREGATED):
        assert stop_seconds(role) == 20.0
    assert stop_seconds(ProcessRole.APISERVER) == stop_seconds(ProcessRole.CONTROL) == 10.0
    assert stop_seconds(ProcessRole.ROUTER) == stop_seconds(ProcessRole.KVMANAGER) == 5.0


def test_three_tries_and_half_a_minute() -> None:
    assert (MAX_START_FAILURES, STABLE_SECONDS) == (3, 30.0)


@pytest.mark.parametrize(
    ("code", "text"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "killed by signal 9")]
)
def test_the_end_in_words(code: int, text: str) -> None:
    assert exit_text(code) == text
