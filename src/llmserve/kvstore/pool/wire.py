"""Between the messages of kvpool.proto and the words of the pool."""

from collections.abc import Iterable

from llmserve.core.errors import InvalidRequest
from llmserve.kvstore.leases import LeaseAnswer
from llmserve.kvstore.pool.slot import Fill, Reserved, ReserveOutcome, Slot, Want
from llmserve.kvstore.tiers.base import BlobKey
from llmserve.rpc.gen.llmserve.v1 import kvpool_pb2 as pb

MOST_SECONDS = 3600.0
_KEY_BYTES = 64
_RESERVE: dict[ReserveOutcome, pb.ReserveOutcome] = {
    outcome: getattr(pb, f"RESERVE_OUTCOME_{outcome.name}") for outcome in ReserveOutcome
}
_RESERVE_FROM_WIRE = {value: outcome for outcome, value in _RESERVE.items()}
_ANSWERS: dict[LeaseAnswer, pb.PinAnswer] = {
    LeaseAnswer.VALID: pb.PIN_ANSWER_VALID,
    LeaseAnswer.ENDED: pb.PIN_ANSWER_ENDED,
    LeaseAnswer.UNKNOWN: pb.PIN_ANSWER_UNKNOWN,
}
_ANSWERS_FROM_WIRE = {value: answer for answer, value in _ANSWERS.items()}


def encode_slot(slot: Slot) -> pb.PoolSlot:
    return pb.PoolSlot(
        offset=slot.offset,
        length_bytes=slot.length_bytes,
        generation=slot.generation,
        checksum=slot.checksum,
    )


def decode_slot(message: pb.PoolSlot) -> Slot:
    return Slot(message.offset, message.length_bytes, message.generation, message.checksum)


def encode_reserved(reserved: Reserved) -> pb.ReservedSlot:
    return pb.ReservedSlot(outcome=_RESERVE[reserved.outcome], slot=encode_slot(reserved.slot))


def decode_reserved(message: pb.ReservedSlot) -> Reserved:
    """Errors: InvalidRequest for an outcome of a newer release."""
    if message.outcome not in _RESERVE_FROM_WIRE:
        raise InvalidRequest(f"unknown outcome of a reservation: {message.outcome}")
    return Reserved(_RESERVE_FROM_WIRE[message.outcome], decode_slot(message.slot))


def encode_fill(fill: Fill) -> pb.PoolFill:
    return pb.PoolFill(key=fill.key, generation=fill.generation, checksum=fill.checksum)


def decode_fills(messages: Iterable[pb.PoolFill]) -> list[Fill]:
    return [Fill(BlobKey(one.key), one.generation, one.checksum) for one in messages]


def encode_answer(answer: LeaseAnswer) -> pb.PinAnswerResponse:
    return pb.PinAnswerResponse(answer=_ANSWERS[answer])


def decode_answer(message: pb.PinAnswerResponse) -> LeaseAnswer:
    return _ANSWERS_FROM_WIRE.get(message.answer, LeaseAnswer.UNKNOWN)


def decode_wants(request: pb.ReserveSlotsRequest) -> list[Want]:
    """Errors: InvalidRequest."""
    keys = decode_keys(request.keys)
    if len(keys) != len(request.length_bytes):
        raise InvalidRequest(f"{len(keys)} keys with {len(request.length_bytes)} lengths")
    if not all(request.length_bytes):
        raise InvalidRequest("a block of no bytes has no slot")
    return [Want(key, length) for key, length in zip(keys, request.length_bytes, strict=True)]


def decode_keys(keys: Iterable[bytes]) -> list[BlobKey]:
    """Errors: InvalidRequest."""
    found = [BlobKey(key) for key in keys]
    if not all(0 < len(key) <= _KEY_BYTES for key in found):
        raise InvalidRequest(f"a key has 1 to {_KEY_BYTES} bytes")
    return found


def decode_seconds(seconds: float) -> float:
    """Errors: InvalidRequest: nothing is held for ever."""
    if not 0 < seconds <= MOST_SECONDS:
        raise InvalidRequest(f"seconds must be between 0 and {MOST_SECONDS:.0f}, not {seconds}")
    return seconds
