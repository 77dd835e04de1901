"""An owner of KV in a process of its own, for test_processes.py.

argv: transports by comma. Prints pull parameters of two blocks as JSON; block b of layer l is filled with
16 * l + b. Ends with its stdin.
"""

import json
import sys

import numpy as np

from llmserve.core.ids import RequestId, WorkerId
from llmserve.core.kv_params import BlockTable, PullParams
from llmserve.engines.kv_transfer import HandoverNode, KvGeometry, KvLayout
from llmserve.transfer.base import Region
from llmserve.transfer.select import makers

LAYERS, BLOCKS, BLOCK_BYTES = 4, 8, 65_536


def main() -> None:
    memory = np.zeros((LAYERS, BLOCKS, BLOCK_BYTES), np.uint8)
    memory[:] = (16 * np.arange(LAYERS)[:, None] + np.arange(BLOCKS)[None, :])[:, :, None]
    regions = tuple(Region(layer.ctypes.data, layer.nbytes) for layer in memory)
    node = HandoverNode(
        worker_id=WorkerId("prefill-0"),
        epoch=1,
        transports=[makers("127.0.0.1")[name]() for name in sys.argv[1].split(",")],
        layout=KvLayout(regions, KvGeometry((BLOCK_BYTES,) * LAYERS, 16)),
        lease_seconds=30,
    )
    lease = node.server.grant(RequestId("p"), [5, 2])
    pull_params = PullParams(
        WorkerId("prefill-0"), 1, lease, (node.endpoint,), BlockTable((5, 2)), 32, 16, 30.0
    )
    print(json.dumps(pull_params.to_params()), flush=True)
    sys.stdin.read()
    node.close()


if __name__ == "__main__":
    main()
