"""Whether prefill's KV is pushed or pulled. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo


class HandoverMode(StrEnum):
    PULL = "pull"  # decode reads it when prefill is done
    PUSH = "push"  # prefill writes it while it computes


@dataclass(frozen=True, slots=True)
class HandoverRule:
    """As the manifest says (`transfer`). push_min_tokens: for `auto`."""

    mode: Literal["auto", "pull", "push"]
    push_min_tokens: int

    def choose(self, uncached_tokens: int, prefill: WorkerInfo, decode: WorkerInfo) -> HandoverMode:
        """uncached_tokens: what prefill has to compute, which is the time that a transfer can hide in."""
        if self.mode == "pull" or not can_push(prefill, decode):
            return HandoverMode.PULL
        long_enough = self.mode == "push" or uncached_tokens >= self.push_min_tokens
        return HandoverMode.PUSH if long_enough else HandoverMode.PULL


def can_push(prefill: WorkerInfo, decode: WorkerInfo) -> bool:
    """Blocks are written one to one: both sides must cut their KV alike. A pull reshapes them."""
    a, b = prefill.kv_shape, decode.kv_shape
    alike = (a.layout, a.block_size_tokens, a.block_bytes, a.tensor_parallel) == (
        b.layout,
        b.block_size_tokens,
        b.block_bytes,
        b.tensor_parallel,
    )
    return alike and bool(prefill.handover_endpoints)
