"""KV hand-over between engines: pull_params, leases on the side channel, pulls over the transports.

Used by engines/connector (in each vLLM worker process) and by engines/sim. No torch, no vLLM.
"""

from llmserve.engines.kv_transfer.channel import query_status, release_lease, set_peers
from llmserve.engines.kv_transfer.client import HandoverClient
from llmserve.engines.kv_transfer.layout.blocks import KvLayout
from llmserve.engines.kv_transfer.layout.geometry import KvGeometry, KvPart
from llmserve.engines.kv_transfer.layout.heads import HeadShard
from llmserve.engines.kv_transfer.node import HandoverNode
from llmserve.engines.kv_transfer.protocol import HandoverStatus
from llmserve.engines.kv_transfer.pull import PullJob, PullLimits
from llmserve.engines.kv_transfer.push.progress import PromptFollower, PushChunk
from llmserve.engines.kv_transfer.push.receive import ReceiveJob, ReceiveLimits
from llmserve.engines.kv_transfer.push.transfer import Finish, PushLimits
from llmserve.engines.kv_transfer.rank import PullResult
from llmserve.engines.kv_transfer.server import HandoverServer

__all__ = [
    "Finish",
    "HandoverClient",
    "HandoverNode",
    "HandoverServer",
    "HandoverStatus",
    "HeadShard",
    "KvGeometry",
    "KvLayout",
    "KvPart",
    "PromptFollower",
    "PullJob",
    "PullLimits",
    "PullResult",
    "PushChunk",
    "PushLimits",
    "ReceiveJob",
    "ReceiveLimits",
    "query_status",
    "release_lease",
    "set_peers",
]
