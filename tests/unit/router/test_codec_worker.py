"""What a worker says of itself reaches the router, and the apiservers."""

from dataclasses import replace

from llmserve.core.adapters import NO_ADAPTERS, LoraShape
from llmserve.core.ids import WorkerId
from llmserve.core.request import WorkerRole
from llmserve.router.codec import decode_worker, encode_status, encode_worker
from llmserve.router.workers.speed import MeasuredSpeed, SpeedStage
from llmserve.router.workers.worker import ClusterMember, KvShape, WorkerSlots, WorkerSpec

SPEC = WorkerSpec(
    worker_id=WorkerId("decode-0"),
    role=WorkerRole.DECODE,
    address="host:1",
    epoch=3,
    model="m",
    kv_shape=KvShape("rev", "bfloat16", "LBHNC", 16, 2, 1, 4096, "float16"),
    max_model_len_tokens=2048,
    total_blocks=100,
    max_concurrency=8,
    transports=("nixl", "tcp"),
    handover_endpoints=("host:2", "host:3"),
    lora=LoraShape(4, 16, ("q_proj",)),
    min_decode_slots=2,
)


def test_a_worker_round_trip() -> None:
    assert decode_worker(encode_worker(SPEC)) == SPEC
    plain = replace(SPEC, lora=NO_ADAPTERS)
    assert decode_worker(encode_worker(plain)) == plain


def test_a_status_has_the_speeds_of_its_worker() -> None:
    speeds = {
        SPEC.worker_id: [
            MeasuredSpeed(SpeedStage.FIRST_TOKEN, 0.2, 0.1),
            MeasuredSpeed(SpeedStage.LATER_TOKENS, 0.02, None),
        ],
        WorkerId("decode-1"): [MeasuredSpeed(SpeedStage.LATER_TOKENS, 9.0, None)],
    }
    status = encode_status(ClusterMember(SPEC, WorkerSlots(), 0.0), 1.0, {}, speeds)
    assert [(one.stage, one.seconds) for one in status.speeds] == [
        ("first token", 0.2),
        ("later tokens", 0.02),
    ]
    assert [one.peers_seconds if one.HasField("peers_seconds") else None for one in status.speeds] == [
        0.1,
        None,
    ]
