import itertools
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from llmserve.core.errors import InvalidRequest
from llmserve.transfer.faults import Fault, FaultPlan, Faults, Rule


def rules(fault: Fault) -> st.SearchStrategy[Rule]:
    milliseconds = st.integers(1 if fault is Fault.DELAY else 0, 5000 if fault is Fault.DELAY else 0)
    return st.builds(
        Rule,
        st.just(fault),
        every=st.integers(1, 1000),
        seconds=milliseconds.map(lambda n: n / 1000),
        after=st.integers(0, 50),
        at_most=st.one_of(st.just(math.inf), st.integers(0, 50)),
    )


PLANS = st.builds(
    lambda faults, seed, data: FaultPlan(tuple(data.draw(rules(fault)) for fault in faults), seed),
    st.lists(st.sampled_from(Fault), unique=True),
    st.integers(0, 99),
    st.data(),
)


@given(PLANS)
def test_a_plan_is_read_as_it_is_written(plan: FaultPlan) -> None:
    assert FaultPlan.parse(str(plan)) == plan


def test_the_text_of_the_documentation() -> None:
    text = "fail_submit=1/16, delay=1/4 for 0.05s,stall=1/1 after 20 at most 1,seed=7"
    assert FaultPlan.parse(text) == FaultPlan(
        (
            Rule(Fault.FAIL_SUBMIT, 16),
            Rule(Fault.DELAY, 4, seconds=0.05),
            Rule(Fault.STALL, 1, after=20, at_most=1),
        ),
        seed=7,
    )
    assert FaultPlan.parse(" , ") == FaultPlan()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stal=1/2", "no fault is called 'stal'; there are fail_submit, fail_poll, delay"),
        ("stall", "stall=: not of the form"),
        ("stall=2", "stall=2: not of the form"),
        ("stall=1/0", "not of the form"),
        ("stall=2/3", "not of the form"),
        ("stall=1/2 at most", "not of the form"),
        ("stall=1/2 for 1s", "with `for` in a delay"),
        ("delay=1/2", "with `for` in a delay"),
        ("delay=1/2 for -1s", "not of the form"),
        ("stall=1/2,stall=1/3", "stall is there twice"),
        ("seed=x", "seed=x: not a whole number"),
        ("seed", "seed=: not a whole number"),
    ],
)
def test_what_is_wrong_is_named(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        FaultPlan.parse(text)


def struck(faults: Faults, fault: Fault, count: int = 2000) -> list[int]:
    """Which of the next transfers are struck."""
    return [i for i in range(count) if fault in faults.draw()]


def test_one_in_n_by_chance() -> None:
    hits = struck(Faults(FaultPlan.parse("stall=1/10,seed=3"), "tcp"), Fault.STALL)
    assert 150 < len(hits) < 250
    assert len({b - a for a, b in itertools.pairwise(hits)}) > 10


def test_the_first_are_spared_and_the_number_is_bounded() -> None:
    faults = Faults(FaultPlan.parse("stall=1/1 after 3 at most 2,corrupt=1/1"), "tcp")
    drawn = [set(faults.draw()) for _ in range(7)]
    assert [Fault.STALL in faults for faults in drawn] == [False] * 3 + [True] * 2 + [False] * 2
    assert all(Fault.CORRUPT in faults for faults in drawn)


def test_the_seed_decides_and_each_rule_and_transport_draws_for_itself() -> None:
    plan = FaultPlan.parse("stall=1/10,seed=3")
    hits = struck(Faults(plan, "tcp"), Fault.STALL)
    assert struck(Faults(plan, "tcp"), Fault.STALL) == hits
    assert struck(Faults(FaultPlan.parse("corrupt=1/2,stall=1/10,seed=3"), "tcp"), Fault.STALL) == hits
    assert struck(Faults(FaultPlan.parse("stall=1/10,seed=4"), "tcp"), Fault.STALL) != hits
    assert struck(Faults(plan, "nixl"), Fault.STALL) != hits
    assert struck(Faults(FaultPlan.parse("corrupt=1/10,seed=3"), "tcp"), Fault.CORRUPT) != hits


def test_another_plan_counts_anew() -> None:
    faults = Faults(FaultPlan.parse("stall=1/1 at most 1"), "tcp")
    assert struck(faults, Fault.STALL, 3) == [0]
    faults.replace(faults.plan)
    assert struck(faults, Fault.STALL, 3) == [0]
    faults.replace(FaultPlan())
    assert struck(faults, Fault.STALL, 3) == []
