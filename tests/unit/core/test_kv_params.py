import json
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.errors import AdapterUnavailable, TransferError
from llmserve.core.ids import AdapterDigest, LeaseId, TransferId, WorkerId
from llmserve.core.kv_params import (
    BlockTable,
    PullParams,
    PushParams,
    check_params,
    for_adapter,
    prefill_params,
    split_endpoint,
    transfer_of,
)

PULL_PARAMS = PullParams(
    worker_id=WorkerId("prefill-0"),
    epoch=3,
    lease_id=LeaseId("3.0.r1"),
    endpoints=("127.0.0.1:4000", "[::1]:4001"),
    blocks=BlockTable((7, 8, 2)),
    num_tokens=300,
    block_size_tokens=128,
    lease_seconds=30.0,
)
PUSH_PARAMS = PushParams(TransferId("t"), WorkerId("prefill-0"), 3, ("127.0.0.1:4000",), 300, continues=True)


def test_a_ticket_survives_json() -> None:
    assert PullParams.from_params(json.loads(json.dumps(PULL_PARAMS.to_params()))) == PULL_PARAMS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_remote_prefill", False),
        ("do_remote_prefill", 1),
        ("worker_id", ""),
        ("worker_id", 5),
        ("epoch", -1),
        ("epoch", True),
        ("epoch", "3"),
        ("epoch", 2**63),
        ("lease_id", None),
        ("lease_id", "x" * 2000),
        ("endpoints", []),
        ("endpoints", "127.0.0.1:4000"),
        ("endpoints", ["127.0.0.1"]),
        ("endpoints", ["127.0.0.1:0"]),
        ("endpoints", ["127.0.0.1:65536"]),
        ("endpoints", ["127.0.0.1:x"]),
        ("endpoints", [":80"]),
        ("endpoints", [80]),
        ("blocks", {"block_ids": []}),
        ("blocks", {"block_ids": [1, 2]}),
        ("blocks", {"block_ids": [1, 2, -3]}),
        ("blocks", {"block_ids": [1, 2, 3.0]}),
        ("blocks", {"block_ids": [1, 2, True]}),
        ("blocks", {"block_ids": {"1": 2}}),
        ("blocks", {"block_ids": [1, 2, 3], "first_blocks": [-1]}),
        ("blocks", {"block_ids": [1, 2, 3], "first_blocks": []}),
        ("blocks", {"block_ids": [1, 2, 3, 4], "first_blocks": [0] * 65}),
        ("blocks", [1, 2, 3]),
        ("num_tokens", 0),
        ("num_tokens", 256),
        ("num_tokens", 385),
        ("block_size_tokens", 0),
        ("lease_seconds", 0),
        ("lease_seconds", float("nan")),
        ("lease_seconds", float("inf")),
        ("lease_seconds", "30"),
    ],
)
def test_garbage_is_refused_by_name(name: str, value: Any) -> None:
    if name in ("num_tokens", "block_size_tokens") and value:
        name = "blocks|" + name
    params = {**PULL_PARAMS.to_params(), name.rpartition("|")[2]: value}
    with pytest.raises(TransferError, match=name):
        PullParams.from_params(params)


@pytest.mark.parametrize("name", sorted(PULL_PARAMS.to_params().keys() - {"adapter"}))
def test_a_missing_field_is_refused_by_name(name: str) -> None:
    params = PULL_PARAMS.to_params()
    del params[name]
    with pytest.raises(TransferError, match=name):
        PullParams.from_params(params)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x), max_leaves=4
)


@given(name=st.sampled_from(sorted(PULL_PARAMS.to_params())), value=_JSON)
def test_any_value_is_a_ticket_or_a_transfer_error(name: str, value: Any) -> None:
    params = {**PULL_PARAMS.to_params(), name: value}
    try:
        pull_params = PullParams.from_params(params)
    except TransferError:
        return
    assert PullParams.from_params(pull_params.to_params()) == pull_params


RED, BLUE = AdapterDigest("a" * 64), AdapterDigest("b" * 64)


def test_kv_of_another_adapter_is_refused_and_may_be_tried_again() -> None:
    for adapter in (BASE_MODEL, RED, BLUE):
        params = replace(PULL_PARAMS, adapter=adapter).to_params()
        check_params(params, 300, adapter)
        for other in {BASE_MODEL, RED, BLUE} - {adapter}:
            with pytest.raises(
                AdapterUnavailable, match=f"adapter is {other or 'none'}, .* {adapter or 'none'}"
            ):
                check_params(params, 300, other)


def test_the_legs_of_a_push_meet_only_with_the_same_adapter() -> None:
    prefill, decode = prefill_params(PUSH_PARAMS.transfer_id), PUSH_PARAMS.to_params()
    assert (for_adapter(prefill, BASE_MODEL), for_adapter(decode, BASE_MODEL)) == (prefill, decode)
    names: set[str] = {PUSH_PARAMS.transfer_id}
    for adapter in (RED, BLUE):
        first, second = for_adapter(prefill, adapter), for_adapter(decode, adapter)
        assert first is not None
        assert second is not None
        check_params(second, PUSH_PARAMS.num_tokens, adapter)
        assert transfer_of(first) == PushParams.from_params(second).transfer_id
        names.add(transfer_of(first))
    assert len(names) == 3


@pytest.mark.parametrize("params", [None, {}, PULL_PARAMS.to_params(), {"do_remote_decode": True}])
def test_what_is_not_pushed_keeps_its_parameters(params: Any) -> None:
    assert for_adapter(params, RED) == params


def test_endpoints_are_split() -> None:
    assert split_endpoint("127.0.0.1:80") == ("127.0.0.1", 80)
    assert split_endpoint("[::1]:80") == ("::1", 80)
