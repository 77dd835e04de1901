"""KV hand-over between engines: tickets, leases on the side channel, pulls over the transports.

Used by engines/connector (in each vLLM worker process) and by engines/sim. No torch, no vLLM.
"""

from llmserve.engines.handover.ask import meet, query_status, release_ticket
from llmserve.engines.handover.client import HandoverClient
from llmserve.engines.handover.geometry import KvGeometry, KvPart
from llmserve.engines.handover.heads import HeadShard
from llmserve.engines.handover.io import HandoverIo
from llmserve.engines.handover.layout import KvLayout
from llmserve.engines.handover.node import HandoverNode
from llmserve.engines.handover.params import arriving_tokens, check_params
from llmserve.engines.handover.policy import TransferPolicy
from llmserve.engines.handover.pull import PullJob, PullLimits, PullResult
from llmserve.engines.handover.push.arrival import ReceiveJob, ReceiveLimits
from llmserve.engines.handover.push.card import PushCard, is_pushed, prefill_params, transfer_of
from llmserve.engines.handover.push.following import PromptFollower, PushChunk
from llmserve.engines.handover.push.transfer import Finish, PushLimits
from llmserve.engines.handover.server import HandoverServer
from llmserve.engines.handover.status import HandoverStatus, TransferCounters
from llmserve.engines.handover.ticket import HandoverTicket, PeerAddress, addresses_for

__all__ = [
    "Finish",
    "HandoverClient",
    "HandoverIo",
    "HandoverNode",
    "HandoverServer",
    "HandoverStatus",
    "HandoverTicket",
    "HeadShard",
    "KvGeometry",
    "KvLayout",
    "KvPart",
    "PeerAddress",
    "PromptFollower",
    "PullJob",
    "PullLimits",
    "PullResult",
    "PushCard",
    "PushChunk",
    "PushLimits",
    "ReceiveJob",
    "ReceiveLimits",
    "TransferCounters",
    "TransferPolicy",
    "addresses_for",
    "arriving_tokens",
    "check_params",
    "is_pushed",
    "meet",
    "prefill_params",
    "query_status",
    "release_ticket",
    "transfer_of",
]
