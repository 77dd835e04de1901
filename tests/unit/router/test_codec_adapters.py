"""Adapters in the messages of sessions and of workers."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from llmserve.core.adapters import BASE_MODEL, NO_ADAPTERS, LoraShape, NamedAdapter
from llmserve.core.ids import AdapterDigest
from llmserve.router.codec import decode_admit, decode_held, decode_worker, encode_cluster, encode_worker
from llmserve.router.workers.worker import WorkerSpec
from llmserve.rpc.adapters import decode_names
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2

DIGEST = AdapterDigest("ab" * 32)


@pytest.mark.parametrize("adapter", [DIGEST, BASE_MODEL])
def test_a_request_asks_for_its_version(adapter: AdapterDigest) -> None:
    message = router_pb2.Admit(request_id="a", model="m", adapter=adapter)
    assert decode_admit(message).placement.adapter == adapter


@pytest.mark.parametrize("adapter", [DIGEST, BASE_MODEL])
def test_a_request_that_runs_has_its_version(adapter: AdapterDigest) -> None:
    decode = common_pb2.WorkerInfo(worker_id="decode-0", epoch=1, model="m")
    placement = router_pb2.Placement(decode=decode)
    message = router_pb2.HeldPlacement(request_id="a", placement=placement, adapter=adapter)
    held = decode_held(message)
    assert (held.adapter, held.model) == (adapter, "m")


@pytest.mark.parametrize("lora", [LoraShape(4, 16, ("q_proj", "v_proj")), NO_ADAPTERS])
def test_what_a_worker_can_run(make_spec: Callable[..., WorkerSpec], lora: LoraShape) -> None:
    spec = replace(make_spec("decode-0"), lora=lora)
    assert decode_worker(encode_worker(spec)) == spec


def test_the_names_of_a_cluster() -> None:
    names = (NamedAdapter("sql", DIGEST, "m", "dir:/a", 8, 100),)
    state = encode_cluster([], 7, names).state
    assert decode_names(state.adapters) == names
    assert state.epoch == 7


def test_no_names_are_not_the_same_as_unchanged_names() -> None:
    assert encode_cluster([], 7, ()).state.HasField("adapters")
    assert not encode_cluster([], 7).state.HasField("adapters")
