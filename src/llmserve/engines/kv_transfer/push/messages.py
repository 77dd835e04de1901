"""What prefill and decode say to each other about a push, as messages of the side channel (wire.py)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from llmserve.core.errors import TransferError
from llmserve.core.fields import (
    endpoint_of,
    fields_of,
    integer_of,
    integers_of,
    object_of,
    seconds_of,
    text_of,
    texts_of,
)
from llmserve.core.ids import ReservationId, TransferId, WorkerId
from llmserve.core.kv_params import PeerAddress, PullParams

_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Reservation:
    """Blocks of decode that stand ready: block_ids[i] is to hold block first_block + i of the prompt,
    in all layers. address: of the decode rank, which prefill connects to. epoch: decode's, it fences."""

    reservation_id: ReservationId
    address: PeerAddress
    first_block: int
    block_ids: tuple[int, ...]

    @property
    def end_block(self) -> int:
        return self.first_block + len(self.block_ids)

    def to_message(self) -> dict[str, Any]:
        return {
            "reservation_id": self.reservation_id,
            "worker_id": self.address.worker_id,
            "epoch": self.address.epoch,
            "endpoint": self.address.endpoint,
            "first_block": self.first_block,
            "block_ids": list(self.block_ids),
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "Reservation":
        """Errors: TransferError."""
        with fields_of("reservation"):
            address = PeerAddress(
                WorkerId(text_of(message, "worker_id")),
                integer_of(message, "epoch", 0),
                endpoint_of(message, "endpoint"),
            )
            return cls(
                reservation_id=ReservationId(text_of(message, "reservation_id")),
                address=address,
                first_block=integer_of(message, "first_block", 0),
                block_ids=integers_of(message, "block_ids"),
            )


@dataclass(frozen=True, slots=True)
class PushOutcome:
    """How prefill's part of a push ended.

    reason: why not all was written; empty: all was, and the lease held all the while. unclean: transports
    over which a write did not end well, so that bytes may still arrive. tokens: what prefill drew.
    pull_params: to pull with instead; without them there is nothing to pull. transport, bytes, seconds: of
    what was written."""

    reason: str = ""
    unclean: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    pull_params: PullParams | None = None
    transport: str = ""
    bytes: int = 0
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return not self.reason

    def to_message(self) -> dict[str, Any]:
        return {
            "reason": self.reason,
            "unclean": list(self.unclean),
            "tokens": list(self.tokens),
            "pull_params": {} if self.pull_params is None else self.pull_params.to_params(),
            "transport": self.transport,
            "bytes": self.bytes,
            "seconds": self.seconds,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "PushOutcome":
        """Errors: TransferError."""
        with fields_of("push outcome"):
            pull_params = object_of(message, "pull_params")
            return cls(
                reason=text_of(message, "reason", least=0),
                unclean=texts_of(message, "unclean"),
                tokens=integers_of(message, "tokens", least=0, most=_MAX_TOKENS),
                pull_params=PullParams.from_params(pull_params) if pull_params else None,
                transport=text_of(message, "transport", least=0),
                bytes=integer_of(message, "bytes", 0),
                seconds=seconds_of(message, "seconds"),
            )


class PushState(StrEnum):
    """Where prefill's part stands."""

    WAITING = "waiting"  # for prefill to compute, or for the reservation
    WRITING = "writing"
    ENDED = "ended"  # the answer carries the outcome
    STOPPED = "stopped"  # decode has given it up, and nothing is being written
    UNKNOWN = "unknown"  # never heard of, or given up long ago


@dataclass(frozen=True, slots=True)
class StateAnswer:
    """To reserve, push_state and stop_push. outcome: with ENDED. unclean: with STOPPED."""

    state: PushState
    outcome: PushOutcome | None = None
    unclean: tuple[str, ...] = ()

    def to_message(self) -> dict[str, Any]:
        outcome = {} if self.outcome is None else self.outcome.to_message()
        return {"ok": True, "state": self.state.value, "outcome": outcome, "unclean": list(self.unclean)}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "StateAnswer":
        """Errors: TransferError."""
        with fields_of("push state"):
            try:
                state = PushState(text_of(message, "state"))
            except ValueError as error:
                raise TransferError(str(error)) from error
            outcome = object_of(message, "outcome")
            known = PushOutcome.from_message(outcome) if outcome else None
            return cls(state, known, texts_of(message, "unclean"))


def transfer_id_of(message: Mapping[str, Any]) -> TransferId:
    """Errors: TransferError."""
    with fields_of("side channel"):
        return TransferId(text_of(message, "transfer_id"))


def reservation_of(message: Mapping[str, Any]) -> tuple[ReservationId, int]:
    """Its id, and the epoch. Errors: TransferError."""
    with fields_of("side channel"):
        return ReservationId(text_of(message, "reservation_id")), integer_of(message, "epoch", 0)
