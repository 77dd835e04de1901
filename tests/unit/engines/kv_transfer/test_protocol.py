import json
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given

from llmserve.core.errors import TransferError
from llmserve.core.ids import TransferId, WorkerId
from llmserve.core.kv_params import (
    PushParams,
    is_pushed,
    prefill_params,
    transfer_of,
)
from llmserve.engines.kv_transfer.protocol import (
    Answer,
    AskDigest,
    AskPush,
    Done,
    LeaseIs,
    PushOutcome,
    Request,
    RequestRefusal,
    decode_answer,
    decode_request,
    encode,
    expect,
)
from llmserve.transfer.base import Spans
from tests.support.side_channel import (
    ANSWERS,
    OUTCOME,
    PULL_PARAMS,
    REQUESTS,
    SPANS,
)

PUSH_PARAMS = PushParams(
    TransferId("t"), WorkerId("prefill-0"), 3, ("127.0.0.1:4000", "[::1]:4001"), 300, True
)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=4,
)


def through_json(message: Any) -> Any:
    return json.loads(json.dumps(message))


@pytest.mark.parametrize("request_", REQUESTS)
def test_requests_survive(request_: Request) -> None:
    assert decode_request(encode(request_)) == request_


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_survive(answer: Answer) -> None:
    assert decode_answer(encode(answer)) == answer
    assert expect(answer, type(answer)) == answer if not isinstance(answer, RequestRefusal) else True


def test_spans_survive() -> None:
    request = decode_request(encode(AskDigest.of(SPANS)))
    assert isinstance(request, AskDigest)
    for mine, theirs in zip(_columns(SPANS), _columns(request.spans()), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(TransferError, match="malformed spans"):
        AskDigest(b"1234567", b"", b"").spans()


def _columns(spans: Spans) -> list[Any]:
    return [spans.regions, spans.offsets, spans.lengths]


def test_another_answer_than_expected_is_an_error() -> None:
    with pytest.raises(TransferError, match=r"^refused by the peer: no$"):
        expect(RequestRefusal("no"), Done)
    with pytest.raises(TransferError, match="Done where LeaseIs was expected"):
        expect(Done(), LeaseIs)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"[" * 100,
        b"\x91" * 100_000,
        encode(Done()),
        b"\x80",
        encode(AskPush(TransferId("text"))).replace(b"text", b"\x81ext"),
    ],
)
def test_garbage_is_no_request(body: bytes) -> None:
    with pytest.raises(TransferError, match=r"^side channel: "):
        decode_request(body)


_PATHS: list[tuple[str, tuple[str, ...], list[Any]]] = [
    ("ReleaseLease", ("lease_id",), ["", "x" * 1025, 5, None]),
    ("ReleaseLease", ("epoch",), [-1, 1 << 63, True, 1.5, "3"]),
    ("ReleaseLease", ("reader",), [-1, None]),
    ("Reserve", ("transfer_id",), ["", 5]),
    ("Reserve", ("reservation", "blocks", "block_ids"), [[], [-1], [1 << 31], [True], "12"]),
    ("Reserve", ("reservation", "blocks", "first_blocks"), [[-1], [1.0], [], [0, 1], [9] * 65]),
    ("Reserve", ("reservation", "address", "endpoint"), ["", "127.0.0.1", "127.0.0.1:0", 5]),
    ("Reserve", ("reservation", "address", "worker_id"), ["", 5]),
    ("EndPush", ("outcome", "tokens"), [[1] * 17, [-1]]),
    ("EndPush", ("outcome", "seconds"), [-1.0, 1e9, float("nan"), float("inf"), "1"]),
    ("EndPush", ("outcome", "bytes"), [-1, 0.5]),
    ("EndPush", ("outcome", "unclean"), ["tcp", [1]]),
    ("EndPush", ("outcome", "pull_params", "num_tokens"), [0, 385]),
    ("EndPush", ("outcome", "pull_params", "endpoints"), [[], ["127.0.0.1:x"]]),
    ("Hello", ("geometry", "block_bytes"), [[], [0], [-1], "1"]),
    ("Hello", ("geometry", "block_size_tokens"), [0, -1, 1 << 32, 3]),
    ("Hello", ("geometry", "shard", "rank"), [-1, 1, 1024]),
    ("Hello", ("geometry", "parts"), [[{"rows": 0, "group_tokens": 1, "group_bytes": 1}], 3]),
    ("Hello", ("geometry", "model"), ["x" * 1025, None]),
    ("SetPeers", ("peers",), [[1], "x", [["w", 1, "a:1"]]]),
]


@pytest.mark.parametrize(
    ("kind", "path", "value"), [(kind, path, value) for kind, path, values in _PATHS for value in values]
)
def test_a_value_out_of_bounds_is_refused(kind: str, path: tuple[str, ...], value: Any) -> None:
    request = next(one for one in reversed(REQUESTS) if type(one).__name__ == kind)
    message = msgspec.msgpack.decode(encode(request))
    at = message
    for name in path[:-1]:
        at = at[name]
    assert path[-1] in at
    at[path[-1]] = value
    with pytest.raises(TransferError):
        decode_request(msgspec.msgpack.encode(message))


@given(data=st.data(), request=st.sampled_from(REQUESTS))
def test_any_value_is_a_request_or_a_transfer_error(data: st.DataObject, request: Request) -> None:
    message = msgspec.msgpack.decode(encode(request))
    message[data.draw(st.sampled_from(sorted(message)))] = data.draw(_JSON)
    _parses_or_refuses(decode_request, msgspec.msgpack.encode(message))


def test_push_params_survive_json() -> None:
    assert PushParams.from_params(through_json(PUSH_PARAMS.to_params())) == PUSH_PARAMS


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
    with pytest.raises(TransferError, match=r"kv_transfer_params: push"):
        transfer_of(params)


@pytest.mark.parametrize("name", PUSH_PARAMS.to_params()["push"])
def test_a_missing_field_of_a_card_is_refused_by_name(name: str) -> None:
    params = PUSH_PARAMS.to_params()
    del params["push"][name]
    with pytest.raises(TransferError, match=f"kv_transfer_params: push: .*{name}"):
        PushParams.from_params(params)


def test_a_card_that_does_not_ask_for_remote_prefill_is_none() -> None:
    with pytest.raises(TransferError, match="do_remote_prefill"):
        PushParams.from_params({**PUSH_PARAMS.to_params(), "do_remote_prefill": False})


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_prefill_does_not_have(rank: int) -> None:
    with pytest.raises(TransferError, match=f"no endpoint for rank {rank}"):
        PUSH_PARAMS.address(rank)


@given(name=st.sampled_from(sorted(PUSH_PARAMS.to_params()["push"])), value=_JSON)
def test_any_value_is_a_card_or_a_transfer_error(name: str, value: Any) -> None:
    params = {"do_remote_prefill": True, "push": {**PUSH_PARAMS.to_params()["push"], name: value}}
    _parses_or_refuses(PushParams.from_params, params)


def _parses_or_refuses(parse: Any, message: Any) -> None:
    try:
        parse(message)
    except TransferError:
        return
