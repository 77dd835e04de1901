"""A message of each kind that engines send each other."""

import numpy as np

from llmserve.core.ids import LeaseId, ReservationId, TransferId, WorkerId
from llmserve.core.kv_params import BlockTable, PeerAddress, PullParams
from llmserve.core.lease_table import LeaseAnswer
from llmserve.core.request import PairStatus
from llmserve.engines.kv_transfer import HeadShard, KvGeometry, KvPart
from llmserve.engines.kv_transfer.protocol import (
    AnnounceProbe,
    Answer,
    AskDigest,
    AskPush,
    AskStatus,
    BeginPush,
    BeginRead,
    DigestIs,
    Done,
    EndPush,
    HandoverStatus,
    Hello,
    LeaseIs,
    PushOutcome,
    PushStanding,
    PushState,
    ReleaseLease,
    RenewLease,
    Request,
    RequestRefusal,
    Reservation,
    Reserve,
    SetPeers,
    StopPush,
    Welcome,
)
from llmserve.transfer.base import Spans
from llmserve.transfer.engine.probe import ProbeInfo

PULL_PARAMS = PullParams(
    WorkerId("prefill-0"), 3, LeaseId("3.r1"), ("127.0.0.1:4000",), BlockTable((7, 8, 2)), 300, 128, 30.0
)
RESERVATION = Reservation(
    ReservationId("1.r"), PeerAddress(WorkerId("decode-0"), 8, "127.0.0.1:5000"), BlockTable((4, 5), (1,))
)
OUTCOME = PushOutcome("broken", ("tcp", "nixl"), (17,), PULL_PARAMS, "tcp", 12, 0.5)


PAIR = PairStatus("p", "tcp", True, "closed", "", 0.1, 1e9, 1, 2, 0.5, 0)
ADDRESS = PeerAddress(WorkerId("decode-0"), 8, "127.0.0.1:5000")
GEOMETRY = KvGeometry((64, 64), 4, "bfloat16", "LBHNC/vec", "model", HeadShard(2, 1, 0), (KvPart(1, 1, 8),))
SPANS = Spans(np.array([0, 1]), np.array([5, 1 << 40]), np.array([7, 8]))
REQUESTS: list[Request] = [
    Hello(GEOMETRY),
    AnnounceProbe(),
    BeginRead(LeaseId("3.r1"), 3),
    RenewLease(LeaseId("3.r1"), 3),
    ReleaseLease(LeaseId("3.r1"), 3, 1, 2),
    AskDigest.of(SPANS),
    SetPeers((ADDRESS, ADDRESS)),
    AskStatus(),
    Reserve(TransferId("t")),
    Reserve(TransferId("t"), RESERVATION),
    AskPush(TransferId("t")),
    StopPush(TransferId("t")),
    BeginPush(ReservationId("1.r"), 8),
    EndPush(ReservationId("1.r"), 8, OUTCOME),
]
ANSWERS: list[Answer] = [
    Welcome("prefill-0", 3, {"tcp": b"\x00\xff"}, ProbeInfo(2, "a", "b"), GEOMETRY),
    *(LeaseIs(answer) for answer in LeaseAnswer),
    DigestIs("abc"),
    HandoverStatus("w", 1, 2, 3, 4, 5, 6, 7, 8, 9, "tcp", ("tcp",), (PAIR,)),
    PushStanding(PushState.WAITING),
    PushStanding(PushState.ENDED, OUTCOME),
    PushStanding(PushState.STOPPED, unclean=("tcp",)),
    Done(),
    RequestRefusal("no"),
]
