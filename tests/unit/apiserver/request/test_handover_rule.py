from typing import Any, Literal

import pytest

from llmserve.apiserver.request.rules import HandoverMode, HandoverRule
from llmserve.rpc.gen.llmserve.v1.common_pb2 import KvShape, WorkerInfo

Mode = Literal["auto", "pull", "push"]


def worker(endpoints: tuple[str, ...] = ("127.0.0.1:1",), **shape: Any) -> WorkerInfo:
    fields = {"layout": "LBHNC/vec", "block_size_tokens": 128, "tensor_parallel": 1, "block_bytes": 1 << 20}
    return WorkerInfo(kv_shape=KvShape(**{**fields, **shape}), handover_endpoints=endpoints)


@pytest.mark.parametrize(
    ("mode", "tokens", "expected"),
    [
        ("auto", 511, HandoverMode.PULL),
        ("auto", 512, HandoverMode.PUSH),
        ("pull", 100_000, HandoverMode.PULL),
        ("push", 1, HandoverMode.PUSH),
    ],
)
def test_long_prompts_are_pushed(mode: Mode, tokens: int, expected: HandoverMode) -> None:
    assert HandoverRule(mode, 512).choose(tokens, worker(), worker()) is expected


@pytest.mark.parametrize("mode", ["auto", "push"])
@pytest.mark.parametrize(
    "other",
    [{"layout": "LBHNC/amx"}, {"block_size_tokens": 64}, {"tensor_parallel": 2}, {"block_bytes": 1 << 19}],
)
def test_workers_of_different_shapes_pull(mode: Mode, other: dict[str, Any]) -> None:
    rule = HandoverRule(mode, 1)
    assert rule.choose(4096, worker(**other), worker()) is HandoverMode.PULL
    assert rule.choose(4096, worker(), worker(**other)) is HandoverMode.PULL


@pytest.mark.parametrize("mode", ["auto", "push"])
def test_a_prefill_worker_that_does_not_say_where_it_is_reached_is_pulled_from(mode: Mode) -> None:
    assert HandoverRule(mode, 1).choose(4096, worker(endpoints=()), worker()) is HandoverMode.PULL
