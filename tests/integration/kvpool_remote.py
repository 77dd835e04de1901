"""A worker that reaches the pool by a transport only, for test_kvpool_transports.py.

argv: the transport, the seed of its memory. Orders on stdin, one a line, as JSON; answers on stdout.
"""

import base64
import json
import sys
import time

import numpy as np

from llmserve.transfer.base import Batch, PeerName, Spans, TransferState, Transport
from llmserve.transfer.select import makers
from tests.unit.kvstore.dram.worker_memory import LAYERS, PIECE_BYTES, WorkerMemory


def _slot(offset: int) -> Spans:
    """The pieces of a block in a slot: one after the other, in region 0."""
    offsets = offset + np.arange(LAYERS, dtype=np.int64) * PIECE_BYTES
    return Spans(np.zeros_like(offsets), offsets, np.full_like(offsets, PIECE_BYTES))


def _move(transport: Transport, peer: PeerName, operation: str, batch: Batch) -> str:
    start = transport.write if operation == "write" else transport.read
    transfer = start(peer, batch)
    while (status := transport.poll(transfer)).state is TransferState.RUNNING:
        time.sleep(0.0005)
    return str(status.state.value)


def main() -> None:
    transport, memory = makers("127.0.0.1")[sys.argv[1]](), WorkerMemory(int(sys.argv[2]))
    transport.register(memory.regions)
    peer = transport.connect(base64.b64decode(sys.stdin.readline()))
    for line in sys.stdin:
        order = json.loads(line)
        batch = Batch(memory.spans(order["block"]), _slot(order["offset"]))
        state = _move(transport, peer, order["do"], batch)
        print(json.dumps([state, memory.checksum(order["block"])]), flush=True)
    transport.close()


if __name__ == "__main__":
    main()
