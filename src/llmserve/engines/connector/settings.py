"""What the front process of an engine tells its connector, and what the connector tells it back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmserve.core.ids import WorkerId
from llmserve.transfer.engine.choice import TransferPolicy


@dataclass(frozen=True, slots=True)
class ConnectorSettings:
    """card_path: where the engine's front process expects the EngineReadyFile. host: what peers reach us by.
    model: the identity of its contents. options: that of the settings that vLLM alone understands; empty
    without any. layerwise: this engine may push KV, layer by layer."""

    worker_id: WorkerId
    epoch: int
    host: str
    model: str
    options: str
    engine_order: tuple[str, ...]
    lease_seconds: float
    card_path: str
    policy: TransferPolicy
    layerwise: bool

    def to_extra_config(self) -> dict[str, Any]:
        return {**asdict(self), "engine_order": list(self.engine_order)}

    @classmethod
    def from_extra_config(cls, extra: Mapping[str, Any]) -> "ConnectorSettings":
        known = {name: extra[name] for name in cls.__dataclass_fields__}
        policy = TransferPolicy(**extra["policy"])
        return cls(**{**known, "engine_order": tuple(extra["engine_order"]), "policy": policy})

    @property
    def push_params(self) -> Path:
        return Path(self.card_path)


@dataclass(frozen=True, slots=True)
class EngineReadyFile:
    """What the front process wants to know once the KV memory exists. The scheduler side writes it to a file
    that the front has named: vLLM has no channel of its own for it. total_blocks: that a prompt can take, if
    no window left any behind. counted_group: the one whose blocks are counted in events (KvGroups)."""

    layout: str
    kv_dtype: str
    computation: str
    block_size_tokens: int
    block_bytes: int
    total_blocks: int
    counted_group: int
    transports: tuple[str, ...]
    endpoints: tuple[str, ...]  # of the side channels, in rank order

    def write(self, path: Path) -> None:
        scratch = path.with_suffix(".part")
        scratch.write_text(json.dumps(asdict(self)))
        scratch.rename(path)

    @classmethod
    def read(cls, path: Path) -> "EngineReadyFile":
        fields = json.loads(path.read_text())
        tuples = {name: tuple(fields[name]) for name in ("transports", "endpoints")}
        return cls(**{**fields, **tuples})
