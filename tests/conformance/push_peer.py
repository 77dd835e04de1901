"""A prefill worker in a process of its own, for test_push.py.

argv: transport kind, as `push_end` takes it. Prints its endpoint, then does what stdin says, a line each, and
answers "done":
announce ID | layers ID FIRST END (as computed) | finish ID | ended (prints the requests whose lease has)
Layer l of block b of the prompt is filled with the byte 16 * l + b; blocks lie at SOURCE.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from llmserve.core.ids import LeaseId, RequestId, TransferId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.engines.kv_transfer import Finish, HandoverNode, KvGeometry, KvLayout, PushChunk
from llmserve.transfer.base import Region, Transport
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.engine.engine import SharedTransfers
from llmserve.transfer.select import makers

LAYERS, BLOCKS, BLOCK_BYTES, BLOCK_TOKENS = 12, 16, 1 << 18, 128
SOURCE = (9, 2, 3, 4, 11, 0)
EPOCH = 3


ON_DEVICES = "-devices"  # ends a kind whose KV is in the memory of fake devices


def push_end(kind: str, fill: int) -> tuple[npt.NDArray[np.uint8], KvLayout, Transport, SharedTransfers]:
    """Makes what an end of pushes needs; its memory has shape [LAYERS, BLOCKS, BLOCK_BYTES]. Errors:
    TransportUnavailable."""
    name, on_devices, _ = kind.partition(ON_DEVICES)
    staging = Staging(FakeDevice()) if on_devices else None
    transport = makers("127.0.0.1", staging)[name]()
    shape, size = (LAYERS, BLOCKS, BLOCK_BYTES), BLOCKS * BLOCK_BYTES
    if staging is not None and isinstance(device := staging.copies, FakeDevice):
        region = device.allocate(LAYERS * size)
        memory = device.view(region).reshape(shape)
    else:
        memory = np.empty(shape, np.uint8)
        region = Region(memory.ctypes.data, memory.nbytes)
    memory[:] = fill
    regions = tuple(
        replace(region, address=region.address + layer * size, length_bytes=size) for layer in range(LAYERS)
    )
    layout = KvLayout(regions, KvGeometry((BLOCK_BYTES,) * LAYERS, BLOCK_TOKENS))
    return memory, layout, transport, SharedTransfers(staging=staging)


class Prefill:
    def __init__(self, kind: str) -> None:
        self.memory, layout, transport, shared = push_end(kind, 255)
        values = 16 * np.arange(LAYERS)[:, None] + np.arange(len(SOURCE))[None, :]
        self.memory[:, list(SOURCE)] = values[:, :, None]
        self.node = HandoverNode(
            worker_id=WorkerId("prefill-0"),
            epoch=EPOCH,
            transports=[transport],
            layout=layout,
            lease_seconds=30,
            shared=shared,
        )

    def announce(self, name: str) -> None:
        self.node.sender.announce(TransferId(name))

    def layers(self, name: str, first: str, end: str) -> None:
        chunk = PushChunk(TransferId(name), 0, len(SOURCE), BlockTable(SOURCE))
        for layer in range(int(first), int(end)):
            self.node.sender.computed(layer, [chunk])

    def finish(self, name: str) -> None:
        request_id = RequestId(name)
        lease_id = self.node.server.grant(request_id, SOURCE, LeaseId(f"{EPOCH}.{name}"))
        tokens = len(SOURCE) * BLOCK_TOKENS
        pull_params = PullParams(
            WorkerId("prefill-0"),
            EPOCH,
            lease_id,
            (self.node.endpoint,),
            BlockTable(SOURCE),
            tokens,
            BLOCK_TOKENS,
            30.0,
        )
        self.node.sender.finish(TransferId(name), Finish(request_id, pull_params, (77,)))

    def ended(self) -> str:
        return json.dumps(sorted(self.node.server.take_ended()))


def main() -> None:
    prefill = Prefill(sys.argv[1])
    print(prefill.node.endpoint, flush=True)
    for line in sys.stdin:
        name, *arguments = line.split()
        answer = getattr(prefill, name)(*arguments)
        print(answer or "done", flush=True)
    prefill.node.close()


if __name__ == "__main__":
    main()
