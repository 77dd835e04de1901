"""The connector's decisions, step by step, without an engine. (vLLM's enums take seconds to import.)"""

from dataclasses import dataclass, field
from typing import Any

import pytest
from vllm.lora.request import LoRARequest
from vllm.v1.request import RequestStatus

from llmserve.core.ids import WorkerId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.engines.connector.groups import KvGroups
from llmserve.engines.connector.orders import StepOrders
from llmserve.engines.connector.scheduler_side import SchedulerSide

BLOCK = 16


@dataclass
class FakeRequest:
    request_id: str
    num_tokens: int
    kv_transfer_params: dict[str, Any] | None = None
    status: RequestStatus = RequestStatus.RUNNING
    lora_request: Any = None
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = self.num_tokens


@dataclass
class FakeBlocks:
    ids: list[int]
    more: tuple[list[int], ...] = ()  # of further groups

    def get_block_ids(self) -> tuple[list[int], ...]:
        return (self.ids, *self.more)


@pytest.fixture
def side() -> SchedulerSide:
    made = SchedulerSide(WorkerId("prefill-0"), epoch=7, groups=KvGroups(BLOCK), lease_seconds=30.0)
    made.set_endpoints(["127.0.0.1:5000"])
    return made


def _ticket(tokens: int, block: int = BLOCK) -> dict[str, Any]:
    blocks = -(-tokens // block)
    pull_params = PullParams(
        worker_id=WorkerId("prefill-9"),
        epoch=3,
        lease_id="l",  # type: ignore[arg-type]
        endpoints=("127.0.0.1:6000",),
        blocks=BlockTable(tuple(range(100, 100 + blocks))),
        num_tokens=tokens,
        block_size_tokens=block,
        lease_seconds=30.0,
    )
    return pull_params.to_params()


def _finished(tokens: int, status: RequestStatus, **params: Any) -> FakeRequest:
    return FakeRequest("p", tokens, params or None, status)


def orders_of(side: SchedulerSide) -> StepOrders:
    """Of a step that computes nothing."""
    return side.take_orders({}, lambda _: ())


def test_a_prefill_at_its_limit_leases_exactly_the_blocks_of_its_prompt(side: SchedulerSide) -> None:
    request = _finished(33, RequestStatus.FINISHED_LENGTH_CAPPED, do_remote_decode=True)
    keep, params = side.request_finished(request, [[4, 9, 2]])
    assert keep
    assert params is not None
    pull_params = PullParams.from_params(params)
    assert (pull_params.blocks.block_ids, pull_params.num_tokens, pull_params.epoch) == ((4, 9, 2), 33, 7)
    (grant,) = orders_of(side).grants
    assert (grant.request_id, grant.lease_id, grant.block_ids) == ("p", pull_params.lease_id, (4, 9, 2))


@pytest.mark.parametrize("adapter", ["", "a" * 64])
def test_a_lease_says_which_adapter_computed_its_blocks(side: SchedulerSide, adapter: str) -> None:
    request = _finished(16, RequestStatus.FINISHED_LENGTH_CAPPED, do_remote_decode=True)
    request.lora_request = LoRARequest(adapter, 1, "/x") if adapter else None
    _, params = side.request_finished(request, [[1]])
    assert PullParams.from_params(params or {}).adapter == adapter


@pytest.mark.parametrize("status", [RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_ABORTED])
def test_a_prefill_that_ends_otherwise_keeps_nothing(side: SchedulerSide, status: RequestStatus) -> None:
    assert side.request_finished(_finished(33, status, do_remote_decode=True), [[1, 2, 3]]) == (False, None)
    assert not orders_of(side).grants


def test_a_request_that_was_not_asked_to_hand_over_keeps_nothing(side: SchedulerSide) -> None:
    assert side.request_finished(_finished(8, RequestStatus.FINISHED_LENGTH_CAPPED), [[1]]) == (False, None)


def test_a_ticket_is_watched_until_its_pull(side: SchedulerSide) -> None:
    request = FakeRequest("d", 41, _ticket(40))
    side.on_new_request(request)
    assert len(orders_of(side).watches) == 1
    assert side.matched_tokens(request, 0) == 40
    side.after_alloc(request, FakeBlocks([7, 8, 9]), 40)
    (pull,) = orders_of(side).pulls
    assert (pull.tokens, pull.local) == (range(40), BlockTable((7, 8, 9)))
    assert side.matched_tokens(request, 0) == 0, "pull parameters are used once"


def test_a_ticket_whose_request_gets_its_blocks_at_once_is_not_watched(side: SchedulerSide) -> None:
    request = FakeRequest("d", 41, _ticket(40))
    side.on_new_request(request)
    side.after_alloc(request, FakeBlocks([7, 8, 9]), 40)
    orders = orders_of(side)
    assert (len(orders.pulls), orders.watches) == (1, [])


def test_what_the_local_cache_has_is_not_pulled(side: SchedulerSide) -> None:
    request = FakeRequest("d", 41, _ticket(40))
    side.on_new_request(request)
    assert side.matched_tokens(request, 32) == 8
    side.after_alloc(request, FakeBlocks([1, 2, 3]), 8)
    (pull,) = orders_of(side).pulls
    assert (pull.tokens, pull.local) == (range(32, 40), BlockTable((3,), (2,)))


@pytest.mark.parametrize(("cached", "local"), [(0, (1, 2, 3)), (16, (2, 3)), (32, (3,))])
def test_the_owners_blocks_may_be_of_another_size(
    side: SchedulerSide, cached: int, local: tuple[int, ...]
) -> None:
    request = FakeRequest("d", 41, _ticket(40, block=24))
    side.on_new_request(request)
    assert side.matched_tokens(request, cached) == 40 - cached
    side.after_alloc(request, FakeBlocks([1, 2, 3]), 40 - cached)
    (pull,) = orders_of(side).pulls
    assert (pull.tokens, pull.local) == (range(cached, 40), BlockTable(local, (cached // BLOCK,)))
    assert pull.pull_params.blocks == BlockTable((100, 101))


def test_a_prompt_that_is_cached_whole_gives_the_lease_back(side: SchedulerSide) -> None:
    request = FakeRequest("d", 33, _ticket(32))
    side.on_new_request(request)
    orders_of(side)
    side.after_alloc(request, FakeBlocks([1, 2, 3]), 0)
    orders = orders_of(side)
    assert len(orders.releases) == 1
    assert not orders.pulls


def test_the_whole_prompt_may_be_remote(side: SchedulerSide) -> None:
    """Decode draws the first token again: its prompt is exactly what the pull covers."""
    request = FakeRequest("d", 40, _ticket(40))
    side.on_new_request(request)
    assert side.matched_tokens(request, 0) == 40


def test_an_abort_before_scheduling_gives_the_lease_back(side: SchedulerSide) -> None:
    request = FakeRequest("d", 41, _ticket(40), RequestStatus.FINISHED_ABORTED)
    side.on_new_request(request)
    orders_of(side)
    assert side.request_finished(request, [[]]) == (False, None)
    orders = orders_of(side)
    assert len(orders.releases) == 1
    assert not orders.cancels


def test_an_abort_during_the_load_cancels_it(side: SchedulerSide) -> None:
    request = FakeRequest("d", 41, _ticket(40), RequestStatus.FINISHED_ABORTED)
    side.on_new_request(request)
    side.after_alloc(request, FakeBlocks([1, 2, 3]), 40)
    orders_of(side)
    side.request_finished(request, [[1, 2, 3]])
    assert orders_of(side).cancels == ["d"]


def test_an_abort_after_the_load_cancels_nothing(side: SchedulerSide) -> None:
    request = FakeRequest("d", 41, _ticket(40), RequestStatus.FINISHED_ABORTED)
    side.on_new_request(request)
    side.after_alloc(request, FakeBlocks([1, 2, 3]), 40)
    orders_of(side)
    side.loads_ended({"d"}, {})
    side.request_finished(request, [[1, 2, 3]])
    orders = orders_of(side)
    assert not orders.cancels
    assert not orders.releases


def test_an_empty_step_waits_only_while_a_request_waits_for_its_kv(side: SchedulerSide) -> None:
    assert not orders_of(side).awaits_kv
    request = FakeRequest("d", 41, _ticket(40))
    side.on_new_request(request)
    side.after_alloc(request, FakeBlocks([1, 2, 3]), 40)
    assert orders_of(side).awaits_kv
    assert not side.take_orders({"another": 1}, lambda _: ()).awaits_kv, "there is work"
    side.loads_ended({"d"}, {})
    assert not orders_of(side).awaits_kv


# -- a model with two groups of layers, the first with a window of 32 tokens


@pytest.fixture
def hybrid() -> SchedulerSide:
    groups = KvGroups(BLOCK, windows=(32, 0), counted=1, layers="d")
    made = SchedulerSide(WorkerId("prefill-0"), epoch=7, groups=groups, lease_seconds=30.0)
    made.set_endpoints(["127.0.0.1:5000"])
    return made


def test_what_the_window_has_left_behind_is_neither_granted_nor_named(hybrid: SchedulerSide) -> None:
    request = _finished(70, RequestStatus.FINISHED_LENGTH_CAPPED, do_remote_decode=True)
    keep, params = hybrid.request_finished(request, [[0, 0, 4, 5, 6], [1, 2, 3, 7, 8]])
    assert keep
    assert params is not None
    assert PullParams.from_params(params).blocks == BlockTable((4, 5, 6, 1, 2, 3, 7, 8), (2, 0))
    (grant,) = orders_of(hybrid).grants
    assert grant.block_ids == (4, 5, 6, 1, 2, 3, 7, 8)


def test_only_blocks_that_the_next_token_sees_are_pulled(hybrid: SchedulerSide) -> None:
    request = FakeRequest("d", 71, _ticket(70))
    hybrid.on_new_request(request)
    hybrid.after_alloc(request, FakeBlocks([0, 0, 24, 25, 26], ([21, 22, 23, 27, 28],)), 54)
    (pull,) = orders_of(hybrid).pulls
    assert (pull.tokens, pull.local) == (range(16, 70), BlockTable((24, 25, 26, 22, 23, 27, 28), (2, 1)))


@pytest.mark.parametrize(("own", "external"), [(47, 0), (48, 47)])
def test_a_last_token_that_sees_more_than_the_owner_kept_is_not_asked_for(
    hybrid: SchedulerSide, own: int, external: int
) -> None:
    """After 47 tokens the next one sees those from 16 on, a new block; the last one sees token 15, too."""
    request = FakeRequest("d", own, _ticket(47))
    hybrid.on_new_request(request)
    orders_of(hybrid)
    assert hybrid.matched_tokens(request, 0) == external
    hybrid.after_alloc(request, FakeBlocks([0, 5, 6], ([1, 2, 3],)), external)
    orders = orders_of(hybrid)
    assert (len(orders.pulls), len(orders.releases)) == (int(own == 48), int(own == 47))
