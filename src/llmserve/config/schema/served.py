"""Section `models` as a list: several models."""

import re
import zlib
from typing import Annotated

from pydantic import Field

from llmserve.config.schema.deployment import Engines
from llmserve.config.schema.engine import EngineConfig, KvCacheConfig
from llmserve.config.schema.lora import Lora
from llmserve.config.schema.models import AdapterSpec, Models, ModelSpec
from llmserve.config.schema.section import Live, ManifestSection

_LONGEST_SLUG = 40
_SECTIONS = ("replicas", "disaggregated", "engine", "kv_cache", "lora")


class ModelReplicas(ManifestSection):
    """The engines of one model. Without a key, `deployment.replicas` has the number."""

    prefill: Engines | None = Field(default=None, ge=0, le=1024)
    """Engines that compute prompts."""
    decode: Engines | None = Field(default=None, ge=1, le=1024)
    """Engines that generate answers. In a deployment that is not disaggregated they also compute prompts."""


class ServedModel(ModelSpec):
    """One of several models, which share the address, the routers and the KV store. Each has engines of its
    own."""

    adapters: Annotated[tuple[AdapterSpec, ...], Live(("router",))] = Field(default=(), strict=False)
    """LoRA adapters of this model, each of which is served under its own model name."""
    draft: ModelSpec | None = None
    """A small model that proposes tokens, which this model verifies, together with its
    `engine.speculative_tokens`."""
    replicas: ModelReplicas = ModelReplicas()
    disaggregated: bool | None = None
    """Prefill and decode run on separate engines. Without it, `deployment.disaggregated` says so."""
    engine: EngineConfig = EngineConfig()
    """Keys of `engine` that this model has otherwise. `env` reaches its engines only."""
    kv_cache: KvCacheConfig = KvCacheConfig()
    """Keys of `kv_cache` that this model has otherwise."""
    lora: Lora | None = None
    """Keys of `lora` that this model has otherwise."""
    tenants: tuple[str, ...] = Field(default=(), strict=False)
    """Only these tenants may use the model; others do not see it. Without it, all may."""
    share: Annotated[float, Live(("router",))] = Field(default=1.0, gt=0, le=1)
    """While requests of other models wait, those of this model hold at most this part of
    `budgets.max_requests_in_flight`, `max_tokens_in_flight` and `hbm_gb`."""

    @classmethod
    def only(cls, models: Models) -> "ServedModel":
        """Returns the model of a manifest that has one."""
        of_source = {name: getattr(models.primary, name) for name in models.primary.model_fields_set}
        return cls(**of_source, draft=models.draft, adapters=models.adapters)

    @property
    def slug(self) -> str:
        """The name in names of processes and pods: lower-case letters, digits and `-`."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.served_name.lower())[:_LONGEST_SLUG].strip("-")
        return plain or f"model-{zlib.crc32(self.served_name.encode()):x}"

    def without_sections(self) -> "ServedModel":
        """Returns the entry without what is merged into the sections of a manifest of this model alone."""
        return self.model_copy(update={name: type(self).model_fields[name].default for name in _SECTIONS})
