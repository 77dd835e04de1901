"""What processes say to each other about a hand-over: typed messages with bounds, in MessagePack.

A message is parsed once, by `decode`: unknown messages, wrong types and values out of bounds are a
TransferError. Each request has one answer, in order; any request may be answered by `RequestRefusal`.
Decision 0022 says why it is not gRPC.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from llmserve.core.errors import TransferError
from llmserve.core.ids import ReservationId
from llmserve.core.kv_params import (
    MOST_RANKS,
    BlockTable,
    LeaseName,
    PeerAddress,
    PullParams,
    Seconds,
    Text,
    TransferName,
    Whole,
    Word,
)
from llmserve.core.lease_table import LeaseAnswer
from llmserve.core.request import PairStatus
from llmserve.engines.kv_transfer.layout.geometry import KvGeometry
from llmserve.transfer.base import Spans
from llmserve.transfer.engine.probe import ProbeInfo

MAX_MESSAGE_BYTES = 4 << 20
_MOST_TOKENS = 16

ReservationName = Annotated[ReservationId, Meta(min_length=1, max_length=1024)]
Texts = Annotated[tuple[Text, ...], Meta(max_length=MOST_RANKS)]


class Message(msgspec.Struct, frozen=True, tag=True):
    """A request or an answer."""


# -- about leases and reads: decode asks prefill


class Hello(Message, frozen=True):
    """First on each connection. geometry: of the caller."""

    geometry: KvGeometry


class Welcome(Message, frozen=True):
    """Answers Hello. transports: how to connect to each."""

    worker_id: Text
    epoch: Whole
    transports: dict[str, bytes]
    probe: ProbeInfo
    geometry: KvGeometry


class AnnounceProbe(Message, frozen=True):
    """A probe follows."""


class LeaseMessage(Message, frozen=True):
    """epoch: incarnation of the owner that the lease was granted by."""

    lease_id: LeaseName
    epoch: Whole


class BeginRead(LeaseMessage, tag="begin", frozen=True):
    """Renews a lease; a read of its blocks follows."""


class RenewLease(LeaseMessage, tag="renew", frozen=True):
    """Lets a lease run for its whole length from now."""


class ReleaseLease(LeaseMessage, tag="release", frozen=True):
    """Ends a lease when each of `readers` ranks has released it; reader: number of this one."""

    reader: Whole = 0
    readers: Whole = 1


class LeaseIs(Message, frozen=True):
    """Answers messages about a lease or a reservation."""

    lease: LeaseAnswer


class AskDigest(Message, frozen=True):
    """The digest of pieces of registered memory: columns of int64, as in Spans."""

    regions: bytes
    offsets: bytes
    lengths: bytes

    @classmethod
    def of(cls, spans: Spans) -> "AskDigest":
        return cls(spans.regions.tobytes(), spans.offsets.tobytes(), spans.lengths.tobytes())

    def spans(self) -> Spans:
        """Not yet compared with any memory. Errors: TransferError."""
        try:
            return Spans(*(np.frombuffer(c, np.int64) for c in (self.regions, self.offsets, self.lengths)))
        except ValueError as error:
            raise TransferError(f"side channel: malformed spans: {error}") from error


class DigestIs(Message, frozen=True):
    digest: Text


# -- from a worker's own front


class SetPeers(Message, frozen=True):
    """The peers to fetch from; replaces those named before."""

    peers: tuple[PeerAddress, ...]


class AskStatus(Message, frozen=True):
    """Answered by HandoverStatus."""


class HandoverStatus(Message, frozen=True):
    """Lease counts are of what is held for others, transfer counts of what was pulled from others. pairs: the
    matrix, in answers of the side channel."""

    worker_id: str
    epoch: int
    open_leases: int
    leased_blocks: int
    orphan_blocks: int
    granted_leases: int
    released_leases: int
    expired_leases: int
    transferred_bytes: int
    transfer_failures: int
    last_transport: str
    transports: tuple[str, ...]
    pairs: tuple[PairStatus, ...] = ()


# -- about pushes: decode asks prefill


@dataclass(frozen=True, slots=True)
class Reservation:
    """Blocks of decode that stand ready to hold those of the prompt. address: side channel of the decode
    rank, which prefill connects to; its epoch fences."""

    reservation_id: ReservationName
    address: PeerAddress
    blocks: BlockTable


class Reserve(Message, frozen=True):
    """reservation: None while decode has the request and no blocks for it yet."""

    transfer_id: TransferName
    reservation: Reservation | None = None


class AskPush(Message, frozen=True):
    """How a push stands. It also keeps the transfer and its lease alive."""

    transfer_id: TransferName


class StopPush(Message, frozen=True):
    """Decode has given the push up."""

    transfer_id: TransferName


class PushState(StrEnum):
    """Where prefill's part stands."""

    WAITING = "waiting"  # for prefill to compute, or for the reservation
    WRITING = "writing"
    ENDED = "ended"  # the answer carries the outcome
    STOPPED = "stopped"  # decode has given it up, and nothing is being written
    UNKNOWN = "unknown"  # never heard of, or given up long ago


@dataclass(frozen=True, slots=True)
class PushOutcome:
    """How prefill's part of a push ended.

    reason: why not all was written; empty when all was, and the lease held all the while. unclean: transports
    over which a write did not end well, so that bytes may still arrive. tokens: drawn by prefill.
    pull_params: what decode can pull with instead; without them there is nothing to pull. transport, bytes,
    seconds: of what was written."""

    reason: Text = ""
    unclean: Texts = ()
    tokens: Annotated[tuple[Word, ...], Meta(max_length=_MOST_TOKENS)] = ()
    pull_params: PullParams | None = None
    transport: Text = ""
    bytes: Whole = 0
    seconds: Seconds = 0.0

    @property
    def complete(self) -> bool:
        return not self.reason


class PushStanding(Message, frozen=True):
    """Answers Reserve, AskPush and StopPush. outcome: with ENDED. unclean: with STOPPED."""

    state: PushState
    outcome: PushOutcome | None = None
    unclean: Texts = ()


# -- about pushes: prefill asks decode


class BeginPush(Message, frozen=True):
    """The first write into a reservation follows."""

    reservation_id: ReservationName
    epoch: Whole


class EndPush(Message, frozen=True):
    """No write into a reservation follows."""

    reservation_id: ReservationName
    epoch: Whole
    outcome: PushOutcome


# -- any


class Done(Message, frozen=True):
    """Answers what has no other answer."""


class RequestRefusal(Message, frozen=True):
    reason: str


Request: TypeAlias = (
    Hello
    | AnnounceProbe
    | BeginRead
    | RenewLease
    | ReleaseLease
    | AskDigest
    | SetPeers
    | AskStatus
    | Reserve
    | AskPush
    | StopPush
    | BeginPush
    | EndPush
)
Answer: TypeAlias = Welcome | LeaseIs | DigestIs | HandoverStatus | PushStanding | Done | RequestRefusal

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_answers = msgspec.msgpack.Decoder(Answer)
A = TypeVar("A", bound=Message)


def encode(message: Request | Answer) -> bytes:
    return _encoder.encode(message)


def decode_request(body: bytes) -> Request:
    """Errors: TransferError."""
    request: Request = _decoded(_requests, body)
    return request


def decode_answer(body: bytes) -> Answer:
    """Returns the answer that a message holds. Errors: TransferError."""
    answer: Answer = _decoded(_answers, body)
    return answer


def expect(answer: Answer, kind: type[A]) -> A:
    """Errors: TransferError with the peer's reason, or for an answer of another kind."""
    if isinstance(answer, RequestRefusal):
        raise TransferError(f"refused by the peer: {answer.reason[:500]}")
    if not isinstance(answer, kind):
        raise TransferError(f"side channel: {type(answer).__name__} where {kind.__name__} was expected")
    return answer


D = TypeVar("D")


def _decoded(decoder: "msgspec.msgpack.Decoder[D]", body: bytes) -> D:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TransferError(f"side channel: {error}") from error
