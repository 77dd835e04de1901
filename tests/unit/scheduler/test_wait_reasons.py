"""What was used up, and when."""

from llmserve.core.ids import TenantId
from llmserve.scheduler.wait_reasons import WaitReasons, WaitTimeline


def test_nothing_was_used_up() -> None:
    assert WaitTimeline().between(0, 10) == {}


def test_each_has_its_part_of_the_time() -> None:
    hindrance = WaitTimeline()
    for what, now in (("tokens", 1.0), ("tokens", 2.0), ("seats", 4.0), ("", 5.0), ("tokens", 8.0)):
        hindrance.set(what, now)
    assert hindrance.between(0.0, 10.0) == {"tokens": 5.0, "seats": 1.0}
    assert hindrance.between(2.0, 4.5) == {"tokens": 2.0, "seats": 0.5}
    assert hindrance.between(5.5, 7.0) == {}
    assert hindrance.between(9.0, 9.0) == {}


def test_only_so_much_is_remembered() -> None:
    hindrance = WaitTimeline()
    for now in range(100_000):
        hindrance.set("abc"[now % 3], float(now))
    assert len(hindrance._since) <= 512
    assert sum(hindrance.between(99_990.0, 100_000.0).values()) == 10.0


def test_a_tenant_waits_for_its_own_and_for_what_all_wait_for() -> None:
    wait_reasons, tenant = WaitReasons(), TenantId("t")
    wait_reasons.all_wait_for("tokens in flight", 0.0)
    wait_reasons.tenant_waits_for(tenant, "the tenant's requests", 2.0)
    wait_reasons.tenant_waits_for(tenant, "", 3.0)
    assert wait_reasons.between(tenant, 0.0, 5.0) == {"tokens in flight": 5.0, "the tenant's requests": 1.0}
    assert wait_reasons.between(TenantId("other"), 0.0, 5.0) == {"tokens in flight": 5.0}
    wait_reasons.gone(tenant)
    assert wait_reasons.between(tenant, 0.0, 5.0) == {"tokens in flight": 5.0}
