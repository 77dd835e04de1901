"""What the metrics say of tenants and budgets."""

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import RequestId, TenantId
from llmserve.scheduler.accounts import OTHERS, Accounts
from llmserve.scheduler.models import Capacity
from llmserve.scheduler.request import Fit, QueuedRequest
from llmserve.scheduler.resources import ClusterLimits
from llmserve.scheduler.scheduler import Policy, Scheduler


def _request(name: str, tenant: str = "gold", prompt: int = 100, arrived_at: float = 0.0) -> QueuedRequest:
    return QueuedRequest(
        RequestId(name), TenantId(tenant), arrived_at, 60.0, prompt_tokens=prompt, max_output_tokens=10
    )


def _scheduler(clock: VirtualClock, limits: ClusterLimits, **policy: int) -> Scheduler:
    found = Scheduler(clock, Policy(limits=limits, weights={TenantId("gold"): 4.0}, **policy))  # type: ignore[arg-type]
    found.set_capacities({"": Capacity(requests=4, kv_bytes_per_token=2.0, hands_over=True)})
    return found


def _place(request: QueuedRequest) -> Fit:
    return Fit.PLACED


def test_a_request_is_in_one_place_from_arrival_to_end() -> None:
    clock = VirtualClock(0.5)
    scheduler = _scheduler(clock, ClusterLimits(max_requests_in_flight=1))
    scheduler.queue.offer(_request("a", arrived_at=0.5), _place)
    scheduler.queue.offer(_request("b", "basic"), _place)
    clock.advance(2.0)
    scheduler.queue.dispatch(_place)
    gold, basic = scheduler.stats().tenants
    assert (gold.tenant, gold.weight, gold.waiting, gold.running, gold.dispatched) == ("gold", 4.0, 0, 1, 1)
    assert gold.queue_seconds == 2.0
    assert (basic.tenant, basic.weight, basic.waiting, basic.running) == ("basic", 1.0, 1, 0)
    scheduler.queue.release(RequestId("a"), 7)
    gold = scheduler.stats().tenants[0]
    assert (gold.running, gold.served_tokens) == (0, 107)
    scheduler.queue.withdraw(RequestId("b"))
    basic = scheduler.stats().tenants[1]
    assert (basic.waiting, basic.refused) == (0, 0)


def test_a_refusal_names_the_tenant_and_what_was_used_up() -> None:
    clock = VirtualClock(0.0)
    limits = ClusterLimits(max_requests_in_flight=1, max_tokens_in_flight=500)
    scheduler = _scheduler(clock, limits, max_queued_requests=1)
    scheduler.queue.offer(_request("a", prompt=450), _place)
    scheduler.queue.dispatch(_place)
    scheduler.queue.offer(_request("b"), _place)
    scheduler.queue.offer(_request("c"), _place)
    clock.advance(60.0)
    scheduler.queue.expire()
    stats = scheduler.stats()
    assert stats.tenants[0].refused == 2
    refused = {budget.name: budget.refused for budget in stats.budgets if budget.refused}
    assert refused == {"requests in flight": 2, "tokens in flight": 2}


def test_what_is_in_flight_and_of_how_much() -> None:
    clock = VirtualClock(0.0)
    limits = ClusterLimits(
        max_requests_in_flight=2, max_tokens_in_flight=440, hbm_bytes=440.0, kv_io_bytes_per_second=400.0
    )
    scheduler = _scheduler(clock, limits, max_queued_requests=9)
    scheduler.queue.offer(_request("a"), _place)
    scheduler.queue.dispatch(_place)
    stats = scheduler.stats()
    assert (stats.tokens_in_flight, stats.kv_bytes_in_flight, stats.queue_limit_requests) == (110, 220.0, 9)
    ratios = {budget.name: budget.used_ratio for budget in stats.budgets}
    assert ratios == {
        "requests in flight": 0.5,
        "tokens in flight": 0.25,
        "KV tokens in HBM": 0.5,
        "KV I/O": 0.5,  # 200 bytes take 0.5 s of the second that is saved up
        "the tenant's requests in flight": None,
        "the tenant's requests per second": None,
        "the tenant's tokens per second": None,
    }
    clock.advance(9.0)
    assert next(one.used_ratio for one in scheduler.stats().budgets if one.name == "KV I/O") == 0.0


def test_without_limits_there_is_no_ratio() -> None:
    scheduler = Scheduler(VirtualClock(0.0), Policy())
    assert {budget.used_ratio for budget in scheduler.stats().budgets} == {None}


def test_no_more_labels_than_agreed() -> None:
    accounts = Accounts()
    for index in range(256 + 50):
        accounts.queued(_request(f"r{index}", f"tenant{index}"))
    accounts.left_queue(_request("r", "tenant305"))
    stats = accounts.stats(lambda tenant: 1.0)
    assert len(stats) == 256 + 1
    assert (stats[-1].tenant, stats[-1].waiting) == (OTHERS, 49)
