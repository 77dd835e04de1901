"""What loading an adapter takes, from what workers report."""

import pytest

from llmserve.core.adapters import AdapterReport, AdapterTier
from llmserve.core.ids import AdapterDigest
from llmserve.router.workers.adapter_loads import AdapterLoads

A = AdapterDigest("a")
DEVICE, DRAM, DISK, SOURCE = AdapterTier


def report(tier: AdapterTier, seconds: float = 0.0, megabytes: float = 30.0) -> AdapterReport:
    return AdapterReport(1, A, tier=tier, size_bytes=int(megabytes * 1e6), load_seconds=seconds)


def test_a_nearer_tier_is_faster_from_the_start() -> None:
    loads = AdapterLoads()
    device, dram, disk, source = (loads.seconds(report(tier)) for tier in AdapterTier)
    assert device == 0.0
    assert [dram, disk, source] == pytest.approx([0.035, 0.09, 1.6])


def test_an_unknown_one_comes_from_its_source_and_has_a_typical_size() -> None:
    loads = AdapterLoads()
    assert loads.seconds(None) == loads.seconds(report(SOURCE))
    assert loads.seconds(report(DISK, megabytes=0)) == loads.seconds(report(DISK))
    assert loads.seconds(report(DISK, megabytes=300)) > 3 * loads.seconds(report(DISK))


def learnt(before: AdapterReport, after: AdapterReport, times: int = 30) -> AdapterLoads:
    loads = AdapterLoads()
    for _ in range(times):
        loads.learn({A: before}, {A: after})
    return loads


@pytest.mark.parametrize("tier", [DRAM, DISK, SOURCE])
def test_a_load_counts_for_the_tier_that_it_came_from(tier: AdapterTier) -> None:
    loads, first = learnt(report(tier), report(DEVICE, 0.5)), AdapterLoads()
    assert loads.seconds(report(tier)) == pytest.approx(0.5, rel=0.1)
    others = [other for other in (DRAM, DISK, SOURCE) if other is not tier]
    assert all(loads.seconds(report(other)) == first.seconds(report(other)) for other in others)


def test_a_load_after_which_it_left_the_slot_counts_as_well() -> None:
    assert learnt(report(DISK, 0.2), report(DRAM, 0.5)).seconds(report(DISK)) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (report(DISK, 0.5), report(DEVICE, 0.5)),  # nothing new
        (report(DISK, 0.5), report(DISK, 0.0)),  # a worker that was started again
        (report(DEVICE, 0.2), report(DEVICE, 0.5)),  # from where, nobody said
    ],
)
def test_what_is_no_load_teaches_nothing(before: AdapterReport, after: AdapterReport) -> None:
    loads, first = learnt(before, after), AdapterLoads()
    assert all(loads.seconds(report(tier)) == first.seconds(report(tier)) for tier in AdapterTier)


def test_a_version_that_was_not_known_before_teaches_nothing() -> None:
    loads = AdapterLoads()
    loads.learn({}, {A: report(DEVICE, 9.0)})
    assert loads.seconds(None) == AdapterLoads().seconds(None)
