"""What the connector is told through vLLM's kv_connector_extra_config."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmserve.core.ids import WorkerId
from llmserve.engines.kv_transfer import TransferPolicy


@dataclass(frozen=True, slots=True)
class ConnectorSettings:
    """card_path: where the engine's front process expects the EngineReadyFile. host: what peers reach us by.
    model: the identity of its contents. layerwise: KV may be pushed, layer by layer."""

    worker_id: WorkerId
    epoch: int
    host: str
    model: str
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
