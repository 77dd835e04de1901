from collections.abc import Callable

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import RequestId, TenantId
from llmserve.router.membership import Membership
from llmserve.router.supply import Supply
from llmserve.router.worker import WorkerSpec
from llmserve.scheduler.request import QueuedRequest

MakeSpec = Callable[..., WorkerSpec]


def _request(clock: VirtualClock, timeout: float) -> QueuedRequest:
    return QueuedRequest(RequestId("r"), TenantId("t"), clock.now(), clock.now() + timeout)


def test_a_change_of_workers_is_told_once(clock: VirtualClock, make_spec: MakeSpec) -> None:
    membership = Membership(clock, expiry_seconds=4.0)
    supply = Supply(membership, grace_seconds=10.0)
    assert not supply.changed()
    membership.register(make_spec("decode-0"))
    assert [supply.changed(), supply.changed()] == [True, False]


def test_where_no_worker_is_a_request_waits_for_the_grace_and_hears_why(clock: VirtualClock) -> None:
    supply = Supply(Membership(clock, expiry_seconds=4.0), grace_seconds=10.0)
    assert supply.deadline(_request(clock, 60.0), "m") == clock.now() + 10.0
    assert supply.deadline(_request(clock, 3.0), "m") == clock.now() + 3.0
    lack = supply.lack("m")
    assert lack is not None
    assert "worker of model m is registered" in lack.message
    assert lack.retry_after_seconds == 10.0


def test_where_workers_are_a_request_waits_for_as_long_as_it_may(
    clock: VirtualClock, make_spec: MakeSpec
) -> None:
    membership = Membership(clock, expiry_seconds=4.0)
    for name in ("prefill-0", "decode-0"):
        membership.register(make_spec(name))
    supply = Supply(membership, grace_seconds=10.0)
    assert supply.lack("m") is None
    assert supply.deadline(_request(clock, 60.0), "m") == clock.now() + 60.0
