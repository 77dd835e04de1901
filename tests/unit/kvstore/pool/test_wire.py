"""Messages of the pool: what goes in comes out, and what is wrong is refused."""

import pytest

from llmserve.core.errors import InvalidRequest
from llmserve.kvstore.leases import LeaseAnswer
from llmserve.kvstore.pool import wire
from llmserve.kvstore.pool.slot import NO_SLOT, Fill, Reserved, ReserveOutcome, Slot
from llmserve.kvstore.tiers.base import BlobKey
from llmserve.rpc.gen.llmserve.v1 import kvpool_pb2 as pb

SLOT = Slot(1 << 40, 3_000_000, 1 << 50, (1 << 64) - 1)


@pytest.mark.parametrize("slot", [NO_SLOT, SLOT])
@pytest.mark.parametrize("outcome", list(ReserveOutcome))
def test_reservations_come_back_as_they_went(outcome: ReserveOutcome, slot: Slot) -> None:
    reserved = Reserved(outcome, slot)
    assert wire.decode_reserved(wire.encode_reserved(reserved)) == reserved


def test_an_outcome_nobody_knows_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="unknown outcome"):
        wire.decode_reserved(pb.ReservedSlot())


def test_fills_come_back_as_they_went() -> None:
    fill = Fill(BlobKey(b"k" * 64), 1 << 50, (1 << 64) - 1)
    assert wire.decode_fills([wire.encode_fill(fill)]) == [fill]


@pytest.mark.parametrize("answer", [LeaseAnswer.VALID, LeaseAnswer.ENDED, LeaseAnswer.UNKNOWN])
def test_answers_come_back_as_they_went(answer: LeaseAnswer) -> None:
    assert wire.decode_answer(wire.encode_answer(answer)) is answer


def test_an_answer_nobody_knows_is_no_proof() -> None:
    assert wire.decode_answer(pb.PinAnswerResponse()) is LeaseAnswer.UNKNOWN


@pytest.mark.parametrize(
    "request_",
    [
        pb.ReserveSlotsRequest(keys=[b"a"], length_bytes=[1, 2]),
        pb.ReserveSlotsRequest(keys=[b"a"], length_bytes=[0]),
        pb.ReserveSlotsRequest(keys=[b""], length_bytes=[1]),
        pb.ReserveSlotsRequest(keys=[b"k" * 65], length_bytes=[1]),
    ],
)
def test_wishes_that_make_no_sense_are_refused(request_: pb.ReserveSlotsRequest) -> None:
    with pytest.raises(InvalidRequest):
        wire.decode_wants(request_)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 3601.0, float("inf"), float("nan")])
def test_nothing_is_held_for_ever(seconds: float) -> None:
    with pytest.raises(InvalidRequest, match="seconds must be"):
        wire.decode_seconds(seconds)
