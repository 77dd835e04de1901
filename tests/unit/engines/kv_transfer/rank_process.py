"""One rank of a prefill worker in a process of its own, for test_shape_processes.py.

argv: rank, tensor-parallel size, tokens of a block. Prints the endpoint of its side channel. Its blocks hold
`content()`, under the lease LEASE. Ends with its stdin.
"""

import sys

import numpy as np

from llmserve.core.ids import LeaseId, RequestId, WorkerId
from llmserve.engines.kv_transfer import HandoverNode, HeadShard, KvGeometry, KvPart
from llmserve.transfer.tcp import TcpTransport
from tests.unit.engines.kv_transfer.shaped_memory import Bytes, ShapedMemory, prompt_content

LAYERS, KV_HEADS, BLOCKS, TOKENS = 4, 4, 20, 150
LEASE = LeaseId("lease")
_PARTS = (KvPart(rows=8, group_tokens=1, group_bytes=2), KvPart(rows=1, group_tokens=1, group_bytes=16))
_CELL = 32


def content() -> Bytes:
    return prompt_content(np.random.default_rng(9), LAYERS, TOKENS, KV_HEADS, _CELL)


def memory(size: int, rank: int, block: int) -> ShapedMemory:
    shard = HeadShard(KV_HEADS, size, rank)
    block_bytes = (block * len(shard.heads) * _CELL,) * LAYERS
    geometry = KvGeometry(block_bytes, block, "bfloat16", "LBHNC/vec", "m", shard, _PARTS)
    return ShapedMemory(geometry, BLOCKS, np.random.default_rng(rank))


def block_ids(block: int) -> list[int]:
    """Neither adjacent nor in order."""
    return [(7 * index + 3) % BLOCKS for index in range(-(-TOKENS // block))]


def node(worker: str, epoch: int, held: ShapedMemory) -> HandoverNode:
    return HandoverNode(
        worker_id=WorkerId(worker),
        epoch=epoch,
        transports=[TcpTransport()],
        layout=held.layout,
        lease_seconds=30,
    )


def main() -> None:
    rank, size, block = map(int, sys.argv[1:])
    held = memory(size, rank, block)
    held.store(content(), block_ids(block))
    mine = node("prefill-0", 1, held)
    mine.server.grant(RequestId("p"), block_ids(block), LEASE)
    print(mine.endpoint, flush=True)
    sys.stdin.read()
    mine.close()


if __name__ == "__main__":
    main()
