"""The manifest `kind: LLMServe` as one frozen tree. Attribute names are the YAML keys.

Sections are passed to whoever needs them, never the whole tree. load.py reads a manifest from YAML, and
docs/configuration.md is generated from these classes.
"""

from typing import Literal

from pydantic import Field

from llmserve.config.schema.deployment import Deployment, LocalDeployment, Replicas
from llmserve.config.schema.engine import EngineConfig, EnvVariable, KvCacheConfig, SimSpec, TransferConfig
from llmserve.config.schema.lora import Lora
from llmserve.config.schema.models import AdapterSpec, Metadata, Models, ModelSpec
from llmserve.config.schema.scheduling import Budgets, Scheduling, TenantBudget, TenantWeight
from llmserve.config.schema.section import ManifestSection
from llmserve.config.schema.service import Api, ApiKey, Observability, Security, State, Tracing
from llmserve.config.schema.speculation import Speculation
from llmserve.config.schema.storage import EncryptionKey, StorageClass, StorageFormat

__all__ = [
    "AdapterSpec",
    "Api",
    "ApiKey",
    "Budgets",
    "Deployment",
    "EncryptionKey",
    "EngineConfig",
    "EnvVariable",
    "KvCacheConfig",
    "LocalDeployment",
    "Lora",
    "Manifest",
    "Metadata",
    "ModelSpec",
    "Models",
    "Observability",
    "Replicas",
    "Scheduling",
    "Security",
    "SimSpec",
    "Speculation",
    "State",
    "StorageClass",
    "StorageFormat",
    "TenantBudget",
    "TenantWeight",
    "Tracing",
    "TransferConfig",
]


class Manifest(ManifestSection):
    """A cluster: what is served, and by how many processes."""

    apiVersion: Literal["llmserve/v1"] = "llmserve/v1"  # noqa: N815 - the YAML key
    """The version of this format."""
    kind: Literal["LLMServe"]
    """What the file describes; always `LLMServe`."""
    metadata: Metadata = Metadata()
    models: Models
    lora: Lora | None = None
    deployment: Deployment = Deployment()
    engine: EngineConfig = EngineConfig()
    kv_cache: KvCacheConfig = KvCacheConfig()
    storageClasses: tuple[StorageClass, ...] = Field(default=(), strict=False)  # noqa: N815 - the YAML key
    """Tiers below device memory that keep KV blocks."""
    transfer: TransferConfig = TransferConfig()
    budgets: Budgets = Budgets()
    scheduling: Scheduling = Scheduling()
    api: Api = Api()
    security: Security = Security()
    state: State = State()
    observability: Observability = Observability()
