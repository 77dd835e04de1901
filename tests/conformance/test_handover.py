"""A whole hand-over within one process, on every transport."""

import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from llmserve.core.ids import RequestId, WorkerId
from llmserve.core.kv_params import BlockTable, PeerAddress, PullParams
from llmserve.engines.kv_transfer import HandoverNode, KvGeometry, KvLayout, PullJob, PullResult
from llmserve.transfer.base import Region
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.engine.engine import SharedTransfers
from llmserve.transfer.select import makers
from tests.support.transports import need_transport

LAYERS, BLOCKS, BLOCK_BYTES = 30, 16, 98_304
Kv = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class Worker:
    """A node and its KV, which is in the memory of a fake device if there is one."""

    def __init__(self, name: str, kind: str, content: Kv, device: FakeDevice | None = None) -> None:
        self.device = device
        staging = Staging(device) if device else None
        need_transport(kind)
        transport = makers("127.0.0.1", staging)[kind]()
        self.kv, regions = content, tuple(Region(layer.ctypes.data, layer.nbytes) for layer in content)
        if device:
            region = device.allocate(content.nbytes)
            self.kv = device.view(region).reshape(content.shape)
            self.kv[:] = content
            regions = tuple(
                replace(
                    region, address=region.address + layer * content[0].nbytes, length_bytes=content[0].nbytes
                )
                for layer in range(LAYERS)
            )
        self.node = HandoverNode(
            worker_id=WorkerId(name),
            epoch=1,
            transports=[transport],
            layout=KvLayout(regions, KvGeometry((BLOCK_BYTES,) * LAYERS, 128)),
            lease_seconds=30,
            policy=TransferPolicy(verify="always", slow_share=0.01),
            shared=SharedTransfers(staging=staging),
        )

    def close(self) -> None:
        self.node.close()
        if self.device:
            self.device.close()


@pytest.mark.parametrize(
    ("kind", "devices"),
    [("nixl", ""), *itertools.product(("tcp", "ucx"), ("", "owner", "reader", "owner and reader"))],
)
def test_blocks_arrive_and_the_lease_comes_back(kind: str, devices: str) -> None:
    """devices: whose KV is in the memory of a device. Probes and digests go the same way."""
    there = np.random.default_rng(1).integers(0, 256, (LAYERS, BLOCKS, BLOCK_BYTES), np.uint8)
    here = np.zeros_like(there)
    workers = [
        Worker("prefill-0", kind, there, FakeDevice() if "owner" in devices else None),
        Worker("decode-0", kind, here, FakeDevice() if "reader" in devices else None),
    ]
    owner, reader = (worker.node for worker in workers)
    here = workers[1].kv
    try:
        reader.client.set_peers([PeerAddress(WorkerId("p"), 1, owner.endpoint)])
        eventually(lambda: any(row.bytes_per_second for row in reader.client.pairs()))
        for turn, (remote, local) in enumerate([((3, 4, 9), (1, 2, 15)), ((0, 1, 2), (4, 5, 6))]):
            request = RequestId(f"r{turn}")
            lease = owner.server.grant(request, remote)
            pull_params = PullParams(
                WorkerId("p"), 1, lease, (owner.endpoint,), BlockTable(remote), 384, 128, 30.0
            )
            reader.client.pull(PullJob(request, pull_params, range(384), BlockTable(local)))
            result = next_result(reader)
            assert (result.ok, result.transport) == (True, kind), result.reason
            assert np.array_equal(here[:, list(local)], there[:, list(remote)])
            assert owner.server.take_ended() == {request}
        assert not here[:, [0, 3, *range(7, 15)]].any()
    finally:
        for worker in workers[::-1]:
            worker.close()


def next_result(reader: HandoverNode) -> PullResult:
    found: list[PullResult] = []

    def take() -> bool:
        found.extend(reader.client.take_finished())
        return bool(found)

    eventually(take)
    return found[0]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.001)
