"""A whole hand-over within one process, on every transport."""

import time

import numpy as np
import pytest

from llmserve.core.errors import TransportUnavailable
from llmserve.core.ids import RequestId, WorkerId
from llmserve.core.kv_params import PullParams
from llmserve.engines.kv_transfer import HandoverNode, KvGeometry, KvLayout, PullJob
from llmserve.transfer.base import Region
from llmserve.transfer.select import makers

LAYERS, BLOCKS, BLOCK_BYTES = 30, 16, 98_304


def make_node(
    worker: str, kind: str, memory: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"
) -> HandoverNode:
    try:
        transport = makers("127.0.0.1")[kind]()
    except TransportUnavailable as error:
        pytest.skip(error.message)
    regions = tuple(Region(layer.ctypes.data, layer.nbytes) for layer in memory)
    layout = KvLayout(regions, KvGeometry((BLOCK_BYTES,) * LAYERS, 128))
    return HandoverNode(
        worker_id=WorkerId(worker), epoch=1, transports=[transport], layout=layout, lease_seconds=30
    )


@pytest.mark.parametrize("kind", ["tcp", "nixl", "ucx"])
def test_blocks_arrive_and_the_lease_comes_back(kind: str) -> None:
    there = np.random.default_rng(1).integers(0, 256, (LAYERS, BLOCKS, BLOCK_BYTES), np.uint8)
    here = np.zeros_like(there)
    owner, reader = make_node("prefill-0", kind, there), make_node("decode-0", kind, here)
    try:
        for turn, (remote, local) in enumerate([((3, 4, 9), (1, 2, 15)), ((0, 1, 2), (4, 5, 6))]):
            request = RequestId(f"r{turn}")
            lease = owner.server.grant(request, remote)
            pull_params = PullParams(WorkerId("p"), 1, lease, (owner.endpoint,), remote, 384, 128, 30.0)
            reader.client.pull(PullJob(request, pull_params, range(384), local))
            deadline = time.monotonic() + 10
            while not (results := reader.client.take_finished()):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            assert (results[0].ok, results[0].transport) == (True, kind), results[0].reason
            assert np.array_equal(here[:, list(local)], there[:, list(remote)])
            assert owner.server.take_ended() == {request}
        assert not here[:, [0, 3, *range(7, 15)]].any()
    finally:
        reader.close()
        owner.close()
