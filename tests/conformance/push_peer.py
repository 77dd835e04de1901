"""A prefill worker in a process of its own, for test_push.py.

argv: transport kind. Prints its endpoint, then does what stdin says, a line each, and answers "done":
announce ID | layers ID FIRST END (as computed) | finish ID | ended (prints the requests whose lease has)
Layer l of block b of the prompt is filled with the byte 16 * l + b; blocks lie at SOURCE.
"""

import json
import sys

import numpy as np

from llmserve.core.ids import LeaseId, RequestId, TransferId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.engines.kv_transfer import Finish, HandoverNode, KvGeometry, KvLayout, PushChunk
from llmserve.transfer.base import Region
from llmserve.transfer.select import makers

LAYERS, BLOCKS, BLOCK_BYTES, BLOCK_TOKENS = 12, 16, 1 << 18, 128
SOURCE = (9, 2, 3, 4, 11, 0)
EPOCH = 3


class Prefill:
    def __init__(self, kind: str) -> None:
        self.memory = np.full((LAYERS, BLOCKS, BLOCK_BYTES), 255, np.uint8)
        values = 16 * np.arange(LAYERS)[:, None] + np.arange(len(SOURCE))[None, :]
        self.memory[:, list(SOURCE)] = values[:, :, None]
        regions = tuple(Region(layer.ctypes.data, layer.nbytes) for layer in self.memory)
        self.node = HandoverNode(
            worker_id=WorkerId("prefill-0"),
            epoch=EPOCH,
            transports=[makers("127.0.0.1")[kind]()],
            layout=KvLayout(regions, KvGeometry((BLOCK_BYTES,) * LAYERS, BLOCK_TOKENS)),
            lease_seconds=30,
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
