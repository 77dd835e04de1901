"""What a decode engine needs to fetch the KV of a finished prefill."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmserve.core.errors import TransferError
from llmserve.core.ids import LeaseId, WorkerId
from llmserve.core.request import KvPeer
from llmserve.engines.handover.fields import (
    endpoints_of,
    fields_of,
    integer_of,
    integers_of,
    seconds_of,
    text_of,
    wrong,
)


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """The side channel of one rank of one incarnation of a worker."""

    worker_id: WorkerId
    epoch: int
    endpoint: str


@dataclass(frozen=True, slots=True)
class HandoverTicket:
    """endpoints: "host:port" of the side channel of each tensor-parallel rank, in rank order.
    block_ids: those of the owner, in prompt order; the last one may be partly filled."""

    worker_id: WorkerId
    epoch: int
    lease_id: LeaseId
    endpoints: tuple[str, ...]
    block_ids: tuple[int, ...]
    num_tokens: int
    block_size_tokens: int
    lease_seconds: float

    def address(self, rank: int) -> PeerAddress:
        """Errors: TransferError for a rank that the owner does not have."""
        if not 0 <= rank < len(self.endpoints):
            raise TransferError(f"the ticket has no endpoint for rank {rank}")
        return PeerAddress(self.worker_id, self.epoch, self.endpoints[rank])

    def to_params(self) -> dict[str, Any]:
        """kv_transfer_params: JSON types only."""
        return {
            "do_remote_prefill": True,
            "worker_id": self.worker_id,
            "epoch": self.epoch,
            "lease_id": self.lease_id,
            "endpoints": list(self.endpoints),
            "block_ids": list(self.block_ids),
            "num_tokens": self.num_tokens,
            "block_size_tokens": self.block_size_tokens,
            "lease_seconds": self.lease_seconds,
        }

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "HandoverTicket":
        """Errors: TransferError naming the field, for anything `to_params` cannot have made."""
        with fields_of("kv_transfer_params"):
            return cls._parsed(params)

    @classmethod
    def _parsed(cls, params: Mapping[str, Any]) -> "HandoverTicket":
        if params.get("do_remote_prefill") is not True:
            raise wrong("do_remote_prefill", "must be true")
        ticket = cls(
            worker_id=WorkerId(text_of(params, "worker_id")),
            epoch=integer_of(params, "epoch", 0),
            lease_id=LeaseId(text_of(params, "lease_id")),
            endpoints=endpoints_of(params),
            block_ids=integers_of(params, "block_ids"),
            num_tokens=integer_of(params, "num_tokens", 1),
            block_size_tokens=integer_of(params, "block_size_tokens", 1),
            lease_seconds=seconds_of(params, "lease_seconds"),
        )
        if not ticket.lease_seconds:
            raise wrong("lease_seconds", "must be more than 0")
        if len(ticket.block_ids) != -(-ticket.num_tokens // ticket.block_size_tokens):
            raise wrong("block_ids", f"{len(ticket.block_ids)} blocks cannot hold {ticket.num_tokens} tokens")
        return ticket


def addresses_for(peer: KvPeer, rank: int, ranks: int) -> list[PeerAddress]:
    """Whom this rank of so many may fetch from: the peer's same rank, or any when it has another number."""
    same = len(peer.endpoints) == ranks
    endpoints = peer.endpoints[rank : rank + 1] if same else peer.endpoints
    return [PeerAddress(peer.worker_id, peer.epoch, endpoint) for endpoint in endpoints]
