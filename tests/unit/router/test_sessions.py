from collections.abc import Callable

from llmserve.core.clock import VirtualClock
from llmserve.core.ids import ApiserverId
from llmserve.router.placement.planner import Plan
from llmserve.router.sessions import PlacementHold, Takeover, Work
from llmserve.router.workers.worker import ClusterMember, WorkerSlots, WorkerSpec

A, B = ApiserverId("a"), ApiserverId("b")


def test_without_another_router_nothing_is_waited_for_or_paid(clock: VirtualClock) -> None:
    takeover = Takeover(clock)
    assert (takeover.settling, takeover.settled_at()) == (False, None)
    assert not takeover.already_charged(A)


def test_nothing_is_placed_until_it_has_settled(clock: VirtualClock) -> None:
    takeover = Takeover(clock)
    takeover.take_over(0.4, inherits=False)
    assert (takeover.settling, takeover.settled_at()) == (True, clock.now() + 0.4)
    clock.advance(0.4)
    assert (takeover.settling, takeover.settled_at()) == (False, None)


def test_only_what_an_apiserver_tells_first_is_in_the_snapshot(clock: VirtualClock) -> None:
    takeover = Takeover(clock)
    takeover.take_over(0.4, inherits=True)
    assert [takeover.already_charged(name) for name in (A, B, A)] == [True, True, False]


def test_without_a_snapshot_nothing_is_charged_yet(clock: VirtualClock) -> None:
    takeover = Takeover(clock)
    takeover.take_over(0.4, inherits=False)
    assert not takeover.already_charged(A)


def test_a_prompt_of_an_earlier_router_is_in_the_backlog_while_it_has_no_first_token() -> None:
    prefill, decode = WorkerSlots(), WorkerSlots()
    hold = PlacementHold(prefill, decode, Work(placed_at=2.0))
    assert (prefill.backlog.prompts, decode.backlog.prompts) == (1, 0)
    assert hold.first_token(5.0) == 3.0
    assert (prefill.placed_requests, prefill.backlog.prompts, decode.placed_requests) == (0, 0, 1)


def test_a_request_of_an_earlier_router_that_decodes_has_no_prompt_to_compute() -> None:
    decode = WorkerSlots()
    assert PlacementHold(None, decode).first_token(5.0) == 0.0
    assert decode.backlog.prompts == 0


def test_a_prompt_is_in_the_backlog_until_its_first_token_also_without_a_prediction(
    make_spec: Callable[..., WorkerSpec],
) -> None:
    worker = ClusterMember(make_spec("decode-0"), WorkerSlots(), heard_at=0.0)
    hold = PlacementHold(None, worker.slots, Work(Plan(None, worker), placed_at=2.0))
    assert (worker.slots.backlog.prompts, worker.slots.backlog.seconds(2.0)) == (1, 0.0)
    hold.first_token(5.0)
    assert worker.slots.backlog.prompts == 0
