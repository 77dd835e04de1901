"""What the two legs of a request that is pushed carry in their kv_transfer_params."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmserve.core.errors import TransferError
from llmserve.core.ids import TransferId, WorkerId
from llmserve.engines.handover.fields import (
    endpoints_of,
    fields_of,
    flag_of,
    integer_of,
    object_of,
    text_of,
    wrong,
)
from llmserve.engines.handover.ticket import PeerAddress


@dataclass(frozen=True, slots=True)
class PushCard:
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
            raise TransferError(f"the push card has no endpoint for rank {rank}")
        return PeerAddress(self.worker_id, self.epoch, self.endpoints[rank])

    def to_params(self) -> dict[str, Any]:
        """kv_transfer_params: JSON types only."""
        card = {
            "transfer_id": self.transfer_id,
            "worker_id": self.worker_id,
            "epoch": self.epoch,
            "endpoints": list(self.endpoints),
            "num_tokens": self.num_tokens,
            "continues": self.continues,
        }
        return {"do_remote_prefill": True, "push": card}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "PushCard":
        """Errors: TransferError naming the field, for anything `to_params` cannot have made."""
        with fields_of("kv_transfer_params"):
            if params.get("do_remote_prefill") is not True:
                raise wrong("do_remote_prefill", "must be true")
            card = object_of(params, "push")
            return cls(
                transfer_id=TransferId(text_of(card, "transfer_id")),
                worker_id=WorkerId(text_of(card, "worker_id")),
                epoch=integer_of(card, "epoch", 0),
                endpoints=endpoints_of(card),
                num_tokens=integer_of(card, "num_tokens", 1),
                continues=flag_of(card, "continues"),
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
