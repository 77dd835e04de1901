import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from llmserve.core.errors import TransferError
from llmserve.core.ids import LeaseId, ReservationId, TransferId, WorkerId
from llmserve.core.kv_params import (
    PeerAddress,
    PullParams,
    PushParams,
    is_pushed,
    prefill_params,
    transfer_of,
)
from llmserve.engines.kv_transfer.push.messages import PushOutcome, PushState, Reservation, StateAnswer

PUSH_PARAMS = PushParams(
    TransferId("t"), WorkerId("prefill-0"), 3, ("127.0.0.1:4000", "[::1]:4001"), 300, True
)
PULL_PARAMS = PullParams(
    WorkerId("prefill-0"), 3, LeaseId("3.r1"), ("127.0.0.1:4000",), (7, 8, 2), 300, 128, 30.0
)
RESERVATION = Reservation(
    ReservationId("1.r"), PeerAddress(WorkerId("decode-0"), 8, "127.0.0.1:5000"), 1, (4, 5)
)
OUTCOME = PushOutcome("broken", ("tcp", "nixl"), (17,), PULL_PARAMS, "tcp", 12, 0.5)


def through_json(message: Any) -> Any:
    return json.loads(json.dumps(message))


def test_all_survive_json() -> None:
    assert PushParams.from_params(through_json(PUSH_PARAMS.to_params())) == PUSH_PARAMS
    assert Reservation.from_message(through_json(RESERVATION.to_message())) == RESERVATION
    assert PushOutcome.from_message(through_json(OUTCOME.to_message())) == OUTCOME
    for answer in (
        StateAnswer(PushState.WAITING),
        StateAnswer(PushState.ENDED, OUTCOME),
        StateAnswer(PushState.STOPPED, unclean=("tcp",)),
    ):
        assert StateAnswer.from_message(through_json(answer.to_message())) == answer


def test_a_push_without_a_reason_is_complete() -> None:
    assert PushOutcome().complete
    assert not OUTCOME.complete


def test_the_legs_are_told_apart() -> None:
    assert is_pushed(PUSH_PARAMS.to_params())
    assert is_pushed(prefill_params(TransferId("t")))
    assert not is_pushed(PULL_PARAMS.to_params())
    assert not is_pushed({"do_remote_decode": True})
    assert transfer_of(prefill_params(TransferId("t"))) == "t"


@pytest.mark.parametrize("params", [{}, {"push": 3}, {"push": {}}, {"push": {"transfer_id": ""}}])
def test_a_transfer_without_a_name_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(TransferError, match=r"kv_transfer_params: (push|transfer_id)"):
        transfer_of(params)


@pytest.mark.parametrize("name", PUSH_PARAMS.to_params()["push"])
def test_a_missing_field_of_a_card_is_refused_by_name(name: str) -> None:
    params = PUSH_PARAMS.to_params()
    del params["push"][name]
    with pytest.raises(TransferError, match=f"kv_transfer_params: {name}"):
        PushParams.from_params(params)


def test_a_card_that_does_not_ask_for_remote_prefill_is_none() -> None:
    with pytest.raises(TransferError, match="do_remote_prefill"):
        PushParams.from_params({**PUSH_PARAMS.to_params(), "do_remote_prefill": False})


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_prefill_does_not_have(rank: int) -> None:
    with pytest.raises(TransferError, match=f"no endpoint for rank {rank}"):
        PUSH_PARAMS.address(rank)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=4,
)


@given(name=st.sampled_from(sorted(PUSH_PARAMS.to_params()["push"])), value=_JSON)
def test_any_value_is_a_card_or_a_transfer_error(name: str, value: Any) -> None:
    params = {"do_remote_prefill": True, "push": {**PUSH_PARAMS.to_params()["push"], name: value}}
    _parses_or_refuses(PushParams.from_params, params)


@given(name=st.sampled_from(sorted(RESERVATION.to_message())), value=_JSON)
def test_any_value_is_a_reservation_or_a_transfer_error(name: str, value: Any) -> None:
    _parses_or_refuses(Reservation.from_message, {**RESERVATION.to_message(), name: value})


@given(name=st.sampled_from(sorted(OUTCOME.to_message())), value=_JSON)
def test_any_value_is_an_outcome_or_a_transfer_error(name: str, value: Any) -> None:
    _parses_or_refuses(PushOutcome.from_message, {**OUTCOME.to_message(), name: value})


@given(name=st.sampled_from(["state", "outcome", "unclean"]), value=_JSON)
def test_any_value_is_an_answer_or_a_transfer_error(name: str, value: Any) -> None:
    _parses_or_refuses(StateAnswer.from_message, {**StateAnswer(PushState.WAITING).to_message(), name: value})


def _parses_or_refuses(parse: Any, message: dict[str, Any]) -> None:
    try:
        parse(message)
    except TransferError:
        return
