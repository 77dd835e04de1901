"""Worker sides of engines for the tests beside this file: their KV is in the memory of a fake device, or of
the host.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from llmserve.core.ids import LeaseId, RequestId, TransferId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams, PushParams
from llmserve.engines.connector.orders import Grant, PushOrders, StepOrders
from llmserve.engines.connector.settings import ConnectorSettings
from llmserve.engines.connector.worker_side import WorkerSide
from llmserve.engines.kv_transfer import (
    Finish,
    KvGeometry,
    KvLayout,
    PullJob,
    PushChunk,
    ReceiveJob,
    query_status,
)
from llmserve.transfer.base import Region
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.engine.engine import SharedTransfers

LAYERS, BLOCKS, BLOCK_BYTES, BLOCK_TOKENS, EPOCH = 2, 8, 8192, 16, 4
SOURCE, TARGET = (5, 2), (1, 3)
ID = TransferId("t")  # of the push
OLD, NEW, JUNK, BLANK = 1, 2, 3, 0


class EngineRank:
    """A worker side. Steps of its device are in flight from `hold` to `release`."""

    def __init__(self, name: str, fill: int, *, on_device: bool = True, kv_dtype: str = "bfloat16") -> None:
        self.device = FakeDevice()
        size = BLOCKS * BLOCK_BYTES
        if on_device:
            region = self.device.allocate(LAYERS * size)
            self.kv = self.device.view(region).reshape(LAYERS, BLOCKS, BLOCK_BYTES)
        else:
            self.kv = np.empty((LAYERS, BLOCKS, BLOCK_BYTES), np.uint8)
            region = Region(self.kv.ctypes.data, self.kv.nbytes)
        self.kv[:] = fill
        layers = [
            replace(region, address=region.address + at * size, length_bytes=size) for at in range(LAYERS)
        ]
        self.side = WorkerSide(
            ConnectorSettings(
                worker_id=WorkerId(name),
                epoch=EPOCH,
                host="127.0.0.1",
                model="m",
                options="",
                engine_order=("tcp",),
                lease_seconds=30.0,
                card_path="",
                policy=TransferPolicy(verify="always"),
                layerwise=True,
            ),
            KvLayout(tuple(layers), KvGeometry((BLOCK_BYTES,) * LAYERS, BLOCK_TOKENS, kv_dtype)),
            SharedTransfers(staging=Staging(self.device) if on_device else None),
        )
        self._gates: list[threading.Event] = []
        self.received: dict[str, bool] = {}

    def hold(self, kernel: Callable[[], None]) -> None:
        """Launches a kernel that ends after `release`."""
        gate = threading.Event()
        self._gates.append(gate)

        def held() -> None:
            gate.wait()
            kernel()

        self.device.launch(held)

    def fill(self, value: int, blocks: tuple[int, ...], layers: slice = slice(None)) -> Callable[[], None]:
        def kernel() -> None:
            self.kv[layers, list(blocks)] = value

        return kernel

    def release(self) -> None:
        for gate in self._gates:
            gate.set()

    def has(self, value: int, blocks: tuple[int, ...], layers: slice = slice(None)) -> bool:
        return bool((self.kv[layers, list(blocks)] == value).all())

    def ended(self, name: str) -> bool:
        """Whether the load of a request has ended."""
        received, failed = self.side.take_received()
        self.received.update({request_id: request_id not in failed for request_id in received})
        return name in self.received

    @property
    def has_probed(self) -> bool:
        """Whether it has measured a peer: it copies nothing for that any more."""
        status = asyncio.run(query_status(self.side.endpoint().endpoint, 5.0))
        return any(pair.bytes_per_second for pair in status.pairs)

    @property
    def pulls(self) -> list[str]:
        """Why each load failed since the last call; empty when it did not."""
        stats = self.side.take_stats()
        return [fields[5] for fields in stats.data["pulls"]] if stats else []

    def params(self, lease: str, blocks: tuple[int, ...] = SOURCE) -> PullParams:
        tokens = len(blocks) * BLOCK_TOKENS
        endpoint = self.side.endpoint().endpoint
        return PullParams(
            WorkerId("p"), EPOCH, LeaseId(lease), (endpoint,), BlockTable(blocks), tokens, BLOCK_TOKENS, 30.0
        )

    def grant(self, lease: str, blocks: tuple[int, ...] = SOURCE, push: PushOrders | None = None) -> None:
        grants = [Grant(RequestId(lease), LeaseId(lease), blocks)]
        self.side.execute(StepOrders(grants=grants, push=push or PushOrders()))

    def pull(self, params: PullParams, local: tuple[int, ...] = TARGET) -> None:
        job = PullJob(RequestId(params.lease_id), params, range(params.num_tokens), BlockTable(local))
        self.side.execute(StepOrders(pulls=[job]))

    def close(self) -> None:
        self.release()
        self.side.close()
        self.device.close()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.001)


def reserve(decode: EngineRank, prefill: EngineRank) -> None:
    endpoint = prefill.side.endpoint().endpoint
    params = PushParams(ID, WorkerId("p"), EPOCH, (endpoint,), 2 * BLOCK_TOKENS, continues=True)
    job = ReceiveJob(RequestId(ID), params, BlockTable(TARGET))
    decode.side.execute(StepOrders(push=PushOrders(receives=[job])))


def step(prefill: EngineRank, first: int, end: int) -> PushOrders:
    """Orders a step that makes some blocks final. Returns its orders."""
    orders = PushOrders(announced=[ID], chunks=[PushChunk(ID, first, end, BlockTable(SOURCE[:end]))])
    prefill.side.execute(StepOrders(push=orders))
    return orders


def finish(prefill: EngineRank) -> None:
    ends = [(ID, Finish(RequestId(ID), prefill.params(ID), (77,)))]
    prefill.grant(ID, push=PushOrders(ends=ends))
