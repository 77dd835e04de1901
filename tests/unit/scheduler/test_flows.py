"""All that waits, by tenant and by deadline."""

import pytest

from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.flows import Flows
from llmserve.scheduler.request import QueuedRequest

WEIGHTS = {TenantId("gold"): 4.0}


def _weight(tenant: TenantId) -> float:
    return WEIGHTS.get(tenant, 1.0)


def _add(flows: Flows, tenant: str, count: int = 1, deadline: float = 60.0) -> list[bool]:
    start = len(flows)
    return [
        flows.add(
            QueuedRequest(RequestId(f"{tenant}-{start + number}"), TenantId(tenant), 0.0, deadline),
            float(number),
        )
        for number in range(count)
    ]


def test_a_tenant_comes_with_its_first_and_goes_with_its_last_request() -> None:
    flows = Flows()
    assert _add(flows, "a", 2) == [True, False]
    first, second = flows
    assert (flows.remove(second), flows.remove(first)) == (False, True)
    assert flows.tenants() == set()
    assert _add(flows, "a") == [True]
    flows.check_integrity()


def test_the_least_key_is_first_and_equal_keys_are_served_as_they_came() -> None:
    flows = Flows()
    for name, key in (("late", 2.0), ("x", 1.0), ("y", 1.0), ("early", 0.5)):
        flows.add(QueuedRequest(RequestId(name), TenantId("a"), 0.0, 60.0), key)
    flow = flows[TenantId("a")]
    assert [flow[index].request.request_id for index in range(len(flow))] == ["early", "x", "y", "late"]


@pytest.mark.parametrize(
    ("waiting", "newcomer", "victim"),
    [
        ({"a": 3, "b": 1}, "b", "a"),
        ({"a": 2, "b": 1}, "b", None),  # with one more, b would have as much as a
        ({"a": 2, "b": 1}, "a", None),
        ({"gold": 8, "b": 1}, "b", None),
        ({"gold": 9, "b": 1}, "b", "gold"),
        ({"a": 3}, "gold", "a"),
        ({"a": 1}, "new", None),
        ({}, "a", None),
    ],
)
def test_room_is_made_by_whoever_has_most_for_its_weight(
    waiting: dict[str, int], newcomer: str, victim: str | None
) -> None:
    flows = Flows()
    for tenant, count in waiting.items():
        _add(flows, tenant, count)
    found = flows.over_its_share(TenantId(newcomer), _weight)
    assert (found.request.tenant if found else None) == victim
    if found:
        last = max(one for one in flows if one.request.tenant == victim)
        assert found is last, "the one that would be served last"


def test_the_weight_of_all_that_wait_and_of_one_more() -> None:
    flows = Flows()
    _add(flows, "a", 2)
    assert flows.weight_with(TenantId("gold"), _weight) == 5.0
    assert flows.weight_with(TenantId("a"), _weight) == 1.0


def test_deadlines_come_once() -> None:
    flows = Flows()
    assert flows.next_deadline() is None
    _add(flows, "a", deadline=5.0)
    _add(flows, "b", deadline=3.0)
    assert flows.next_deadline() == 3.0
    assert [one.request.tenant for one in flows.due(4.0)] == ["b"]
    assert flows.due(4.0) == []
