"""The settings of an engine: the same for every kind of engine."""

from dataclasses import dataclass
from pathlib import Path

from llmserve.config.schema import EngineConfig, KvCacheConfig, Speculation, TransferConfig
from llmserve.core.adapters import NO_ADAPTERS, LoraShape
from llmserve.core.ids import WorkerId
from llmserve.core.request import WorkerRole
from llmserve.transfer.engine.choice import TransferPolicy


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """epoch: larger with each start of the worker. model_identity: names the model by its contents
    (models/directory.py), as model_name does for clients. model_dir: a prepared model directory; None: a
    simulated engine needs none. handover_host: the address that peers reach this host by.
    kv_io_bytes_per_second: this engine's share of budgets.max_kv_io_gbps; None: no limit. kv_store: host:port
    of each KV manager that keeps blocks, always in the same order; none: no block is kept. kv_store_quantize:
    the format of the DRAM class. lora: the adapters that it must be able to run. speculation: as
    `speculation_of` returns it, on prefill as well, which computes what decode needs of a prompt. draft_dir,
    draft_identity: of the draft model or head, as model_dir and model_identity; None and empty: there is
    none. draft_identity is "mtp" where layers of the model itself propose."""

    worker_id: WorkerId
    epoch: int
    role: WorkerRole
    model_dir: Path | None
    model_name: str
    model_identity: str
    engine: EngineConfig
    kv_cache: KvCacheConfig
    transfer: TransferConfig
    handover_host: str = "127.0.0.1"
    kv_io_bytes_per_second: float | None = None
    kv_store: tuple[str, ...] = ()
    kv_store_quantize: str = "none"
    lora: LoraShape = NO_ADAPTERS
    speculation: Speculation | None = None
    draft_dir: Path | None = None
    draft_identity: str = ""

    @property
    def kv_identity(self) -> str:
        """Names the contents of all models whose KV lies in a block."""
        draft = f", draft {self.draft_identity}" if self.draft_identity else ""
        return f"{self.model_identity}{draft}"


def computation_words(dtype: str, max_model_len_tokens: int, options: str = "") -> str:
    """Names the settings that change the numbers in KV, besides their own type and layout: the type of the
    activations, the longest context, on which some models' rotary embedding and attention depend, and
    options: the identity of the settings that vLLM alone understands (`options_digest`)."""
    words = f"{dtype} up to {max_model_len_tokens} tokens"
    return f"{words}, options {options}" if options else words


def transfer_policy(spec: EngineSpec) -> TransferPolicy:
    """Returns the policy of each rank of the engine."""
    limit, ranks = spec.kv_io_bytes_per_second, spec.engine.tensor_parallel
    return TransferPolicy(
        slow_factor=spec.transfer.slow_factor,
        slow_share=spec.transfer.slow_share,
        verify=spec.transfer.verify,
        bytes_per_second=limit / ranks if limit else None,
    )
