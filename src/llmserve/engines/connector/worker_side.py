"""The acting half of the connector: runs in a vLLM worker process, one per rank.

It registers the rank's KV memory with the transports, keeps the lease table, and executes the
orders of the scheduler side. Called between forward passes; nothing here waits for the network.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmserve.engines.connector.metadata import StepOrders
from llmserve.engines.connector.stats import HandoverStats
from llmserve.engines.handover import HandoverNode, HandoverTicket, KvLayout, PullJob
from llmserve.transfer.base import Region

if TYPE_CHECKING:
    import torch


class WorkerSide:
    """Made before the KV memory exists; `register` completes it."""

    def __init__(self, node: HandoverNode, rank: int) -> None:
        self._node = node
        self._rank = rank
        self._failed: set[str] = set()
        self._last_stats: dict[str, Any] = {}
