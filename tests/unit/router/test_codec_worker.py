"""What a worker says of itself reaches the router, and the apiservers."""

from dataclasses import replace

from llmserve.core.adapters import NO_ADAPTERS, LoraShape
from llmserve.core.ids import WorkerId
from llmserve.core.outcome import WorkerRole
from llmserve.router.codec import decode_worker, encode_worker
from llmserve.router.workers.worker import KvShape, WorkerSpec

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
