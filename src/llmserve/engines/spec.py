"""What a worker tells its engine at construction: the same for every kind of engine."""

from dataclasses import dataclass
from pathlib import Path

from llmserve.config.schema import EngineConfig, KvCacheConfig, TransferConfig
from llmserve.core.ids import WorkerId
from llmserve.core.outcome import WorkerRole


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """epoch: larger with each start of the worker. model_dir: a prepared model directory; None: a
    simulated engine needs none. handover_host: the address that peers reach this host by."""

    worker_id: WorkerId
    epoch: int
    role: WorkerRole
    model_dir: Path | None
    model_name: str
    engine: EngineConfig
    kv_cache: KvCacheConfig
    transfer: TransferConfig
    handover_host: str = "127.0.0.1"
