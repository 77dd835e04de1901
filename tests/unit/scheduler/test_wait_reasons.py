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


def test_at_least_256_changes_are_remembered_and_fewer_than_512() -> None:
    """One each second."""
    hindrance, remembered = WaitTimeline(), []
    for now in range(2000):
        hindrance.set("abcdefg"[now % 7], float(now))
        remembered.append(sum(hindrance.between(0.0, now + 1.0).values()))
        assert len(hindrance._since) <= 512
    assert remembered[:512] == [*range(1, 512), 256.0]
    assert set(remembered[512:]) == set(range(256, 512))
    assert hindrance.between(0.0, 1995.0) == hindrance.between(1000.0, 1995.0)
    assert hindrance.between(1990.0, 1992.0) == {"c": 1.0, "d": 1.0}, "each keeps its own time"


def test_a_tenant_waits_for_its_own_and_for_what_all_wait_for() -> None:
    wait_reasons, tenant = WaitReasons(), TenantId("t")
    wait_reasons.all_wait_for("tokens in flight", 0.0)
    wait_reasons.tenant_waits_for(tenant, "the tenant's requests", 2.0)
    wait_reasons.tenant_waits_for(tenant, "", 3.0)
    assert wait_reasons.between(tenant, 0.0, 5.0) == {"tokens in flight": 5.0, "the tenant's requests": 1.0}
    assert wait_reasons.between(TenantId("other"), 0.0, 5.0) == {"tokens in flight": 5.0}
    wait_reasons.gone(tenant)
    assert wait_reasons.between(tenant, 0.0, 5.0) == {"tokens in flight": 5.0}
