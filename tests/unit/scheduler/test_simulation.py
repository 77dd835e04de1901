"""What the policy promises, in virtual time."""

import statistics

import pytest

from llmserve.core.ids import TenantId
from llmserve.core.stats import jain
from llmserve.scheduler.ordering import ShortestFirst
from llmserve.scheduler.resources import ClusterLimits
from llmserve.scheduler.scheduler import Policy
from llmserve.scheduler.tenant_budgets import TenantLimit, TenantLimits
from tests.unit.scheduler.simulation import Client, Simulation, drawn

CHAT = drawn((50, 500), (20, 300))
LONG = drawn((1000, 4000), (200, 1000))
SHORT = drawn((20, 100), (20, 80))


def test_weights_of_4_to_1_deliver_4_to_1() -> None:
    """16 slots compute 16,000 tokens a second; both ask for twice that, one in large pieces."""
    policy = Policy(weights={TenantId("gold"): 4.0})
    clients = [Client("gold", 100, CHAT), Client("basic", 12, LONG)]
    report = Simulation(policy, clients, slots=16, seconds=140, warm_up_seconds=20).run()
    ratio = report.served_tokens["gold"] / report.served_tokens["basic"]
    assert ratio == pytest.approx(4.0, rel=0.03)


def test_one_tenant_with_ten_times_the_load_gets_its_share_only() -> None:
    clients = [Client(name, 15, CHAT) for name in "abcd"] + [Client("flood", 150, CHAT)]
    report = Simulation(Policy(), clients, slots=16, seconds=140, warm_up_seconds=20).run()
    assert jain([float(tokens) for tokens in report.served_tokens.values()]) >= 0.98
    assert len(report.served_tokens) == 5


def test_a_flood_makes_no_room_for_itself_in_the_queue() -> None:
    """Those within their share are never refused, however full the queue."""
    clients = [Client("small", 5, CHAT), Client("flood", 300, LONG)]
    report = Simulation(Policy(max_queued_requests=50), clients, slots=16, seconds=60).run()
    assert report.refused["flood"] > 1000
    assert report.refused["small"] == 0


@pytest.mark.parametrize(
    "limits", [ClusterLimits(), ClusterLimits(max_tokens_in_flight=300_000)], ids=["slots", "tokens"]
)
def test_short_requests_stay_quick_under_a_flood(limits: ClusterLimits) -> None:
    """A short one waits for a slot to become free, and there are 40 a second: 3 s for each of the flood's."""
    policy = Policy(limits=limits)
    short = Client("short", 20, SHORT)
    quiet = Simulation(policy, [short], slots=128, seconds=60, warm_up_seconds=10).run()
    attacked = Simulation(
        policy, [short, Client("flood", 200, LONG)], slots=128, seconds=60, warm_up_seconds=10
    ).run()
    assert attacked.p99("short") <= 2 * quiet.p99("short")


def test_shortest_first_within_a_tenant_shortens_the_typical_wait() -> None:
    """An overload of 1.3, in which one request of five is long."""
    mixed = Client("t", 30, lambda rng: LONG(rng) if rng.random() < 0.2 else SHORT(rng))
    medians = []
    for ordering in (ShortestFirst(aging_seconds=0.0), ShortestFirst()):
        report = Simulation(Policy(ordering=ordering), [mixed], slots=15, seconds=60).run()
        medians.append(statistics.median(report.latencies["t"]))
    in_order, shortest_first = medians
    assert shortest_first < 0.2 * in_order


def test_a_tenant_at_its_own_limit_delays_nobody() -> None:
    limits = ClusterLimits(
        tenants=TenantLimits(named={TenantId("flood"): TenantLimit(tokens_per_second=2000)})
    )
    clients = [Client("small", 20, CHAT), Client("flood", 100, CHAT)]
    report = Simulation(Policy(limits=limits), clients, slots=32, seconds=120, warm_up_seconds=20).run()
    assert report.served_tokens["flood"] / 100 == pytest.approx(2000, rel=0.05)
    assert report.p99("small") < 1.0
