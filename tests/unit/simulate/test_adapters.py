"""Adapters of simulated workers, and what the router makes of a thousand."""

import random
from collections import Counter
from functools import partial

import pytest

from bench.placement import adapter_fairness
from bench.placement.adapter_routing import hot_spot, simulated
from bench.placement.routing import PAIRS
from llmserve.core.adapters import AdapterTier
from llmserve.core.clock import Agenda
from llmserve.core.ids import AdapterDigest
from llmserve.simulate.adapters import AdapterTiers, VirtualAdapters, made_up_digest, with_adapters
from llmserve.traces import TracedRequest

A, B, C = (made_up_digest(number) for number in range(3))
DEVICE, DRAM, DISK, _ = AdapterTier


class Node:
    """Two slots, memory for two; a load takes 1 s from memory and 3 s from disk."""

    def __init__(self) -> None:
        self.agenda = Agenda()
        self.changes = 0
        self.ready: list[tuple[AdapterDigest, float]] = []
        tiers = AdapterTiers(2, 2, 1.0, 3.0, (A, B, C))
        self.adapters = VirtualAdapters(tiers, self.agenda, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def hold(self, *adapters: AdapterDigest) -> None:
        for adapter in adapters:
            self.adapters.hold(adapter, partial(self._is_ready, adapter))

    def _is_ready(self, adapter: AdapterDigest) -> None:
        self.ready.append((adapter, self.agenda.now))

    def until(self, when: float) -> None:
        stop: list[bool] = []
        self.agenda.at(when, lambda: stop.append(True))
        while not stop:
            self.agenda.step()

    @property
    def tiers(self) -> list[AdapterTier]:
        return [report.tier for report in self.adapters.reports()]


def test_requests_of_one_version_wait_for_one_load() -> None:
    node = Node()
    node.hold(A, A, AdapterDigest(""))
    assert node.adapters.waiting_requests == 2
    node.until(4.0)
    node.hold(A)
    assert node.ready == [("", 0.0), (A, 3.0), (A, 3.0), (A, 4.0)]
    assert (node.adapters.waiting_requests, node.changes) == (0, 1)
    assert node.adapters.found == Counter({DISK: 1, DEVICE: 2})
    assert [report.load_seconds for report in node.adapters.reports()] == [3.0, 0.0, 0.0]


def test_the_idle_slot_that_was_used_longest_ago_is_used_again() -> None:
    node = Node()
    node.hold(A, B)
    node.until(4.0)
    node.adapters.let_go(B)
    node.adapters.let_go(A)
    node.hold(A)
    node.hold(C)
    node.until(8.0)
    assert node.tiers == [DEVICE, DRAM, DEVICE]
    node.adapters.let_go(A)
    node.hold(B)
    node.until(9.5)
    assert node.ready[-1] == (B, 9.0), "memory had it"
    assert node.tiers == [DISK, DEVICE, DEVICE], "and has not room for three"


def test_popularity_follows_zipfs_law() -> None:
    requests = [TracedRequest(0.0, 1, 1)] * 5000
    counts = Counter(one.adapter for one in with_adapters(requests, 4, 1.0, random.Random(1)))
    parts = [counts[made_up_digest(number)] / 5000 * (1 + 1 / 2 + 1 / 3 + 1 / 4) for number in range(4)]
    assert parts == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4], abs=0.05)
    alike = Counter(one.adapter for one in with_adapters(requests, 4, 0.0, random.Random(1)))
    assert all(count == pytest.approx(1250, rel=0.1) for count in alike.values())


def test_a_thousand_adapters_wait_less_than_where_those_that_are_loaded_come_first() -> None:
    """8 workers, Zipf 1.0. The rare ones are served as well, and no worker is hot."""
    routed, loaded_first = (
        simulated(routing, seconds=12.0, per_second=45.0, seed=3) for routing in ("kv_aware", "prefer_loaded")
    )
    assert routed.first_token.p99 <= 0.7 * loaded_first.first_token.p99
    assert hot_spot(routed) <= 1.5
    assert routed.served == routed.requests


def test_no_worker_is_hot_where_pairs_serve() -> None:
    """Four prefill and four decode workers, `disaggregate: auto`, under three quarters of their load."""
    report = simulated("kv_aware", seconds=8.0, per_second=30.0, deployment=PAIRS, seed=5)
    assert hot_spot(report) <= 1.5
    assert report.served == report.requests


def test_tenants_get_their_shares_where_slots_are_short() -> None:
    """Five of six requests are for one of five adapters, workers have one slot, and the weights are 2 to 1.
    Without debts between tenants it was 1.2 to 1.5. Most requests still find their adapter loaded."""
    report = adapter_fairness.simulated(slots=1, adapters=5, seed=1, seconds=30.0)
    assert adapter_fairness.ratio(report) == pytest.approx(adapter_fairness.WEIGHT, rel=0.08)
    assert report.requests_per_second > 14.0
    assert report.adapters["device"] > 0.7
