"""kv_transfer_params of a request: how KV gets from the prefill engine to the decode engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmserve.core.errors import TransferError
from llmserve.core.fields import (
    endpoints_of,
    fields_of,
    flag_of,
    integer_of,
    integers_of,
    object_of,
    seconds_of,
    text_of,
    wrong,
)
from llmserve.core.ids import LeaseId, TransferId, WorkerId
from llmserve.core.request import KvPeer


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """The side channel of one rank of one incarnation of a worker."""

    worker_id: WorkerId
    epoch: int
    endpoint: str


@dataclass(frozen=True, slots=True)
class PullParams:
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
            raise TransferError(f"the pull has no endpoint for rank {rank}")
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
    def from_params(cls, params: Mapping[str, Any]) -> "PullParams":
        """Errors: TransferError naming the field, for anything `to_params` cannot have made."""
        with fields_of("kv_transfer_params"):
            return cls._parsed(params)

    @classmethod
    def _parsed(cls, params: Mapping[str, Any]) -> "PullParams":
        if params.get("do_remote_prefill") is not True:
            raise wrong("do_remote_prefill", "must be true")
        pull_params = cls(
            worker_id=WorkerId(text_of(params, "worker_id")),
            epoch=integer_of(params, "epoch", 0),
            lease_id=LeaseId(text_of(params, "lease_id")),
            endpoints=endpoints_of(params),
            block_ids=integers_of(params, "block_ids"),
            num_tokens=integer_of(params, "num_tokens", 1),
            block_size_tokens=integer_of(params, "block_size_tokens", 1),
            lease_seconds=seconds_of(params, "lease_seconds"),
        )
        if not pull_params.lease_seconds:
            raise wrong("lease_seconds", "must be more than 0")
        if len(pull_params.block_ids) != -(-pull_params.num_tokens // pull_params.block_size_tokens):
            raise wrong(
                "block_ids",
                f"{len(pull_params.block_ids)} blocks cannot hold {pull_params.num_tokens} tokens",
            )
        return pull_params


def addresses_for(peer: KvPeer, rank: int, ranks: int) -> list[PeerAddress]:
    """Whom this rank of so many may fetch from: the peer's same rank, or any when it has another number."""
    same = len(peer.endpoints) == ranks
    endpoints = peer.endpoints[rank : rank + 1] if same else peer.endpoints
    return [PeerAddress(peer.worker_id, peer.epoch, endpoint) for endpoint in endpoints]


@dataclass(frozen=True, slots=True)
class PushParams:
    """Decode's: it waits for `num_tokens` of prompt from that prefill worker. endpoints: of the worker's
    side channels, in rank order. continues: decode goes on from the token that prefill draws; if not, it
    draws that token again."""

    transfer_id: TransferId
    worker_id: WorkerId
    epoch: int
    endpoints: tuple[str, ...]
    num_tokens: int
    continues: bool

    def address(self, rank: int) -> PeerAddress:
        """Errors: TransferError for a rank that the worker does not have."""
        if not 0 <= rank < len(self.endpoints):
            raise TransferError(f"the push has no endpoint for rank {rank}")
        return PeerAddress(self.worker_id, self.epoch, self.endpoints[rank])

    def to_params(self) -> dict[str, Any]:
        """kv_transfer_params: JSON types only."""
        push_params = {
            "transfer_id": self.transfer_id,
            "worker_id": self.worker_id,
            "epoch": self.epoch,
            "endpoints": list(self.endpoints),
            "num_tokens": self.num_tokens,
            "continues": self.continues,
        }
        return {"do_remote_prefill": True, "push": push_params}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "PushParams":
        """Errors: TransferError naming the field, for anything `to_params` cannot have made."""
        with fields_of("kv_transfer_params"):
            if params.get("do_remote_prefill") is not True:
                raise wrong("do_remote_prefill", "must be true")
            push_params = object_of(params, "push")
            return cls(
                transfer_id=TransferId(text_of(push_params, "transfer_id")),
                worker_id=WorkerId(text_of(push_params, "worker_id")),
                epoch=integer_of(push_params, "epoch", 0),
                endpoints=endpoints_of(push_params),
                num_tokens=integer_of(push_params, "num_tokens", 1),
                continues=flag_of(push_params, "continues"),
            )


def is_pushed(params: Mapping[str, Any]) -> bool:
    """Whether kv_transfer_params, of either leg, ask for a push."""
    return "push" in params


def prefill_params(transfer_id: TransferId) -> dict[str, Any]:
    """kv_transfer_params of prefill's leg."""
    return {"do_remote_decode": True, "push": {"transfer_id": transfer_id}}


def transfer_of(params: Mapping[str, Any]) -> TransferId:
    """Of prefill's leg. Errors: TransferError."""
    with fields_of("kv_transfer_params"):
        return TransferId(text_of(object_of(params, "push"), "transfer_id"))


def check_params(params: Mapping[str, Any] | None, prompt_tokens: int) -> None:
    """Before an engine takes the request. Errors: TransferError naming the field."""
    if not params:
        return
    if params.get("do_remote_prefill"):
        _check_arrival(params, prompt_tokens)
    elif params.get("do_remote_decode") and is_pushed(params):
        transfer_of(params)


def arriving_tokens(params: Mapping[str, Any] | None) -> int:
    """Of a prompt, how much another worker hands over; 0: it is all computed here. Errors: TransferError."""
    if not params or not params.get("do_remote_prefill"):
        return 0
    return (PushParams if is_pushed(params) else PullParams).from_params(params).num_tokens


def _check_arrival(params: Mapping[str, Any], prompt_tokens: int) -> None:
    if not is_pushed(params):
        PullParams.from_params(params)
        return
    push_params = PushParams.from_params(params)
    if push_params.num_tokens != prompt_tokens:
        raise TransferError(f"kv_transfer_params: num_tokens: the prompt has {prompt_tokens}")
