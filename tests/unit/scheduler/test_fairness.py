"""Tags and virtual time, step by step."""

import pytest

from llmserve.core.ids import RequestId, TenantId, background_of
from llmserve.scheduler.fairness import FairShare, TenantShares
from llmserve.scheduler.request import QueuedRequest

A, B = TenantId("a"), TenantId("b")


def _request(
    name: str, tenant: TenantId = A, prompt: int = 90, expected: int = 10, charged: bool = False
) -> QueuedRequest:
    return QueuedRequest(
        RequestId(name),
        tenant,
        0.0,
        1.0,
        prompt_tokens=prompt,
        expected_output_tokens=expected,
        charged=charged,
    )


def _tags(fairness: FairShare) -> dict[TenantId, float]:
    return dict(fairness.snapshot().tags)


def test_nothing_is_known_at_the_start() -> None:
    fairness = FairShare()
    assert (fairness.snapshot().virtual_time, fairness.snapshot().highest, _tags(fairness)) == (0.0, 0.0, {})
    assert fairness.next() is None
    assert TenantShares().cost(_request("r"), 10) == 100.0
    assert (TenantShares().weight(A), TenantShares({A: 3.0}).weight(A)) == (1.0, 3.0)


def test_a_background_flow_has_a_part_of_its_tenants_weight() -> None:
    shares = TenantShares({A: 3.0, background_of(TenantId("c")): 5.0}, background=0.5)
    assert (shares.weight(A), shares.weight(background_of(A))) == (3.0, 1.5)
    assert (shares.weight(B), shares.weight(background_of(B))) == (1.0, 0.5)
    assert TenantShares().weight(background_of(B)) == 1.0
    assert shares.weight(background_of(TenantId("c"))) == 5.0  # named itself


def test_the_cost_is_the_larger_of_work_and_held_kv() -> None:
    cached = QueuedRequest(RequestId("r"), A, 0.0, 1.0, prompt_tokens=100, cached_tokens=90)
    assert TenantShares(kv_token_price=0.5).cost(cached, 10) == 55.0
    assert TenantShares(kv_token_price=0.1).cost(cached, 10) == 20.0


def test_a_dispatched_request_moves_its_tenants_tag_by_cost_over_weight() -> None:
    fairness = FairShare(TenantShares({A: 4.0}))
    fairness.join(A)
    fairness.dispatched(_request("r"))
    assert _tags(fairness) == {A: 25.0}
    assert fairness.virtual_time == 0.0
    fairness.dispatched(_request("s"))
    assert (_tags(fairness), fairness.virtual_time) == ({A: 50.0}, 25.0)


def test_only_what_exceeds_the_estimate_is_charged_before_the_end() -> None:
    fairness = FairShare()
    fairness.join(A)
    request = _request("r")
    fairness.dispatched(request)
    fairness.corrected(request, 10)
    assert _tags(fairness) == {A: 100.0}
    fairness.corrected(request, 11)
    assert _tags(fairness) == {A: 101.0}
    fairness.ended(request, 2)
    assert _tags(fairness) == {A: 92.0}
    fairness.check_integrity({A}, set())


def test_to_generate_what_was_expected_costs_no_turn() -> None:
    fairness = FairShare()
    fairness.join(A)
    fairness.join(B)
    request = _request("r")
    fairness.dispatched(request)
    fairness.dispatched(_request("s", B))
    fairness.corrected(request, 10)
    assert fairness.next() == A, "both have the same tag, and A had it first"


def test_what_an_earlier_router_charged_costs_only_the_difference() -> None:
    fairness = FairShare()
    fairness.join(A)
    request = _request("r", charged=True)
    fairness.dispatched(request)
    assert (_tags(fairness), fairness.virtual_time) == ({A: 0.0}, 0.0)
    fairness.ended(request, 15)
    assert _tags(fairness) == {A: 5.0}


def test_a_newcomer_starts_at_virtual_time() -> None:
    fairness = FairShare()
    fairness.join(A)
    for name in "rst":
        fairness.dispatched(_request(name))
    fairness.join(B)
    assert _tags(fairness) == {A: 300.0, B: 200.0}
    assert fairness.next() == B


def test_one_that_never_waited_pays_from_virtual_time_on() -> None:
    fairness = FairShare()
    fairness.join(A)
    for name in "rs":
        fairness.dispatched(_request(name))
    fairness.dispatched(_request("t", tenant=B))
    assert _tags(fairness)[B] == fairness.virtual_time + 100.0


def test_debts_are_forgiven_when_nobody_waits() -> None:
    fairness = FairShare()
    fairness.join(A)
    fairness.join(B)
    fairness.dispatched(_request("r"))
    fairness.leave(A)
    assert fairness.virtual_time == 0.0
    fairness.leave(B)
    assert (fairness.virtual_time, _tags(fairness)) == (100.0, {})
    assert fairness.next() is None
    fairness.join(A)
    assert _tags(fairness) == {A: 100.0}


def test_equal_tags_take_turns_in_the_order_in_which_they_were_set() -> None:
    fairness = FairShare()
    fairness.join(B)
    fairness.join(A)
    assert fairness.next() == B
    fairness.suspend(B)
    assert fairness.next() == A
    fairness.resume(B)
    assert fairness.next() == A


@pytest.mark.parametrize("tenants", [1, 3])
def test_entries_that_are_out_of_date_do_not_pile_up(tenants: int) -> None:
    fairness, sizes = FairShare(), set[int]()
    for number in range(tenants):
        fairness.join(TenantId(f"t{number}"))
    for number in range(500):
        request = _request(str(number), tenant=TenantId("t0"))
        fairness.dispatched(request)
        sizes.add(len(fairness._heap))
        fairness.ended(request, 10)
        sizes.add(len(fairness._heap))
    assert max(sizes) == 2 * tenants + 64
    assert fairness.next() == TenantId("t1" if tenants > 1 else "t0")


def test_another_router_goes_on_where_this_one_was() -> None:
    fairness, other = FairShare(), FairShare()
    fairness.join(A)
    for name in "rs":
        fairness.dispatched(_request(name))
    other.restore(fairness.snapshot())
    assert other.snapshot() == fairness.snapshot()
    other.join(A)
    other.join(B)
    other.leave(A)
    other.leave(B)
    assert other.virtual_time == 200.0


def test_who_comes_back_from_a_suspension_has_saved_up_nothing() -> None:
    fairness = FairShare()
    fairness.join(A)
    fairness.join(B)
    fairness.suspend(B)
    for name in "rst":
        fairness.dispatched(_request(name))
    fairness.resume(B)
    assert (_tags(fairness), fairness.virtual_time) == ({A: 300.0, B: 200.0}, 200.0)


def test_who_waited_before_and_does_not_wait_now_pays_from_virtual_time_on() -> None:
    fairness = FairShare()
    fairness.join(A)
    fairness.join(B)
    fairness.dispatched(_request("b", B))
    fairness.leave(B)
    for name in "rstu":
        fairness.dispatched(_request(name))
    fairness.dispatched(_request("c", B))
    assert (_tags(fairness), fairness.virtual_time) == ({A: 400.0, B: 400.0}, 300.0)


def test_the_least_tag_is_next_after_entries_were_dropped() -> None:
    fairness = FairShare()
    for tenant in (A, B):
        fairness.join(tenant)
    request = _request("r", expected=0)
    fairness.dispatched(request)  # A's entry is no longer the least one
    for output in range(1, 100):  # each puts a new entry of A's into the heap, and most are out of date
        fairness.corrected(request, output)
        assert fairness.next() == B
