"""The connector's decisions about pushes, step by step, without an engine."""

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.request import Request, RequestStatus

from llmserve.core.ids import TransferId, WorkerId
from llmserve.core.kv_params import BlockTable, PushParams, prefill_params
from llmserve.engines.connector.groups import KvGroups
from llmserve.engines.connector.orders import Continuations
from llmserve.engines.connector.push_side import continue_from
from llmserve.engines.connector.scheduler_side import SchedulerSide

BLOCK = 16


class FakeBlocks:
    def __init__(self, *ids: int) -> None:
        self.ids = list(ids)

    def get_block_ids(self) -> tuple[list[int]]:
        return (self.ids,)


@pytest.fixture
def side() -> SchedulerSide:
    made = SchedulerSide(WorkerId("w"), epoch=7, groups=KvGroups(BLOCK), lease_seconds=30.0)
    made.set_endpoints(["127.0.0.1:5000"])
    return made


def request_of(name: str, tokens: int, params: dict[str, Any] | None) -> Request:
    extra = {"kv_transfer_params": params} if params else None
    return Request(
        name,
        list(range(100, 100 + tokens)),
        SamplingParams(max_tokens=5, extra_args=extra),
        None,
        block_hasher=lambda request: [b""] * (request.num_tokens // BLOCK - len(request.block_hashes)),
    )


def card_of(tokens: int) -> PushParams:
    return PushParams(TransferId("t"), WorkerId("p"), 3, ("127.0.0.1:6000",), tokens, continues=True)


def orders_of(side: SchedulerSide, scheduled: dict[str, int] | None = None, *block_ids: int) -> Any:
    return side.take_orders(scheduled or {}, lambda _: (block_ids,)).push


# -- prefill


def test_a_prefill_is_announced_and_followed(side: SchedulerSide) -> None:
    request = request_of("p", 40, prefill_params(TransferId("t")))
    side.on_new_request(request)
    orders = orders_of(side)
    assert orders.announced == ["t"]
    assert not orders.chunks, "it waits"
    (chunk,) = orders_of(side, {"p": 20, "other": 3}, 7, 8).chunks
    assert (chunk.transfer_id, chunk.start_block, chunk.end_block, chunk.blocks) == (
        "t",
        0,
        1,
        BlockTable((7, 8)),
    )
    request.num_computed_tokens = 20
    (chunk,) = orders_of(side, {"p": 20}, 7, 8, 9).chunks
    assert (chunk.start_block, chunk.end_block, chunk.restarted) == (1, 3, False)


def test_at_its_end_the_ticket_and_the_token_go_to_decode(side: SchedulerSide) -> None:
    request = request_of("p", 40, prefill_params(TransferId("t")))
    side.on_new_request(request)
    orders_of(side)
    request.append_output_token_ids(77)
    request.status = RequestStatus.FINISHED_LENGTH_CAPPED
    keep, params = side.request_finished(request, [[7, 8, 9]])
    assert keep
    ((transfer_id, end),) = orders_of(side).ends
    assert (end.request_id, transfer_id, end.tokens) == ("p", "t", (77,))
    assert end.pull_params.to_params() == params
    assert end.pull_params.blocks == BlockTable((7, 8, 9))
    assert not orders_of(side, {"p": 1}, 1).chunks, "it is over"


@pytest.mark.parametrize("status", [RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_ABORTED])
def test_a_prefill_that_ends_otherwise_is_dropped(side: SchedulerSide, status: RequestStatus) -> None:
    request = request_of("p", 40, prefill_params(TransferId("t")))
    side.on_new_request(request)
    orders_of(side)
    request.status = status
    assert side.request_finished(request, [[7, 8, 9]]) == (False, None)
    orders = orders_of(side)
    assert (orders.dropped, orders.ends) == (["t"], [])


def test_a_prefill_that_is_pulled_from_is_not_followed(side: SchedulerSide) -> None:
    request = request_of("p", 40, {"do_remote_decode": True})
    side.on_new_request(request)
    assert not orders_of(side, {"p": 40}, 7, 8, 9).chunks
    request.status = RequestStatus.FINISHED_LENGTH_CAPPED
    side.request_finished(request, [[7, 8, 9]])
    orders = orders_of(side)
    assert (orders.dropped, orders.ends) == ([], [])


@pytest.mark.parametrize("params", [{"do_remote_decode": True, "push": 3}, {"push": {}}])
def test_malformed_parameters_are_no_push(side: SchedulerSide, params: dict[str, Any]) -> None:
    side.on_new_request(request_of("p", 40, params))
    assert not orders_of(side, {"p": 40}, 7, 8, 9).chunks


# -- decode


def parked(side: SchedulerSide, tokens: int = 40) -> Request:
    request = request_of("d", tokens, card_of(tokens).to_params())
    side.on_new_request(request)
    side.after_alloc(request, FakeBlocks(1, 2, 3), tokens)
    request.status = RequestStatus.WAITING_FOR_REMOTE_KVS
    return request


def test_a_request_waits_for_the_whole_prompt(side: SchedulerSide) -> None:
    request = request_of("d", 40, card_of(40).to_params())
    side.on_new_request(request)
    assert orders_of(side).expected == [card_of(40)]
    assert side.matched_tokens(request, 0) == 40
    assert side.matched_tokens(request, 32) == 8
    side.after_alloc(request, FakeBlocks(1, 2, 3), 8)
    (receive,) = orders_of(side).receives
    assert (receive.request_id, receive.blocks) == ("d", BlockTable((3,), (2,)))
    assert side.matched_tokens(request, 0) == 0, "a push_params is used once"


def test_a_request_that_is_not_to_load_anything_forgets_its_card(side: SchedulerSide) -> None:
    request = request_of("d", 40, card_of(40).to_params())
    side.on_new_request(request)
    orders_of(side)
    side.after_alloc(request, FakeBlocks(1, 2, 3), 0)
    orders = orders_of(side)
    assert (orders.forgotten, orders.receives) == ([card_of(40)], [])


def test_it_goes_on_from_prefills_token(side: SchedulerSide) -> None:
    request = parked(side)
    side.loads_ended({"d"}, {"d": (77,)})
    assert request.prompt_token_ids == [*range(100, 140), 77]
    assert list(request.all_token_ids) == request.prompt_token_ids
    assert (request.num_prompt_tokens, request.num_tokens, request.num_output_tokens) == (41, 41, 0)


def test_without_a_token_it_stays_as_it_is(side: SchedulerSide) -> None:
    request = parked(side)
    side.loads_ended({"d"}, {})
    assert request.num_prompt_tokens == 40


def test_an_abort_before_it_has_blocks(side: SchedulerSide) -> None:
    request = request_of("d", 40, card_of(40).to_params())
    side.on_new_request(request)
    orders_of(side)
    request.status = RequestStatus.FINISHED_ABORTED
    side.request_finished(request, [[]])
    orders = orders_of(side)
    assert (orders.forgotten, orders.cancels) == ([card_of(40)], [])


def test_an_abort_while_its_blocks_are_filled(side: SchedulerSide) -> None:
    request = parked(side)
    orders_of(side)
    request.status = RequestStatus.FINISHED_ABORTED
    side.request_finished(request, [[1, 2, 3]])
    orders = orders_of(side)
    assert (orders.forgotten, orders.cancels) == ([], ["d"])
    side.loads_ended({"d"}, {"d": (77,)})
    assert request.num_prompt_tokens == 40


# -- going on


def test_a_block_that_the_token_fills_gets_its_hash() -> None:
    request = request_of("d", 31, None)
    request.status = RequestStatus.WAITING_FOR_REMOTE_KVS
    request.prefill_stats = PrefillStats()
    request.prefill_stats.set(31, 0, 31)
    assert len(request.block_hashes) == 1
    continue_from(request, (77,))
    assert len(request.block_hashes) == 2
    stats = request.prefill_stats
    assert (stats.num_prompt_tokens, stats.num_external_cached_tokens, stats.num_computed_tokens) == (
        32,
        31,
        1,
    )


def test_a_request_that_ended_meanwhile_stays_as_it_is() -> None:
    request = request_of("d", 31, None)
    request.status = RequestStatus.FINISHED_ABORTED
    continue_from(request, (77,))
    assert request.num_prompt_tokens == 31


def test_all_ranks_say_the_same() -> None:
    one, two = Continuations({"a": (1,)}), Continuations({"a": (1,), "b": (2,)})
    assert one.aggregate(two).tokens == {"a": (1,), "b": (2,)}


# -- windows


@pytest.mark.parametrize(
    ("continues", "tokens", "external"), [(True, 47, 47), (False, 47, 0), (False, 48, 48)]
)
def test_a_last_token_that_sees_more_than_prefill_kept_is_not_computed_again(
    continues: bool, tokens: int, external: int
) -> None:
    side = SchedulerSide(WorkerId("w"), epoch=7, groups=KvGroups(BLOCK, (32,)), lease_seconds=30.0)
    params = PushParams(TransferId("t"), WorkerId("p"), 3, ("127.0.0.1:6000",), tokens, continues)
    request = request_of("d", tokens, params.to_params())
    side.on_new_request(request)
    assert side.matched_tokens(request, 0) == external
