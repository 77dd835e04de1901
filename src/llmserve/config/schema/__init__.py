"""The manifest `kind: LLMServe` as one frozen tree. Attribute names are the YAML keys.

Sections are passed down to whoever needs them, never the whole. load.py reads one from YAML;
docs/configuration.md is generated from it.
"""

from typing import Annotated, Literal

from pydantic import Field

from llmserve.config.schema.api import Api
from llmserve.config.schema.deployment import Deployment, LocalDeployment, Replicas
from llmserve.config.schema.engine import EngineConfig, EnvVariable, KvCacheConfig, SimSpec, TransferConfig
from llmserve.config.schema.models import AdapterSpec, Metadata, Models, ModelSpec
from llmserve.config.schema.scheduling import Budgets, Scheduling, TenantBudget, TenantWeight
from llmserve.config.schema.section import ManifestSection
from llmserve.config.schema.service import ApiKey, Observability, Security, State, Tracing
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
    "Manifest",
    "Metadata",
    "ModelSpec",
    "Models",
    "Observability",
    "Replicas",
    "Scheduling",
    "Security",
    "SimSpec",
    "State",
    "StorageClass",
    "StorageFormat",
    "TenantBudget",
    "TenantWeight",
    "Tracing",
    "TransferConfig",
]


class Manifest(ManifestSection):
    """A cluster: what is served, by how many of what."""

    apiVersion: Annotated[  # noqa: N815 - the YAML key
        Literal["llmserve/v1"], Field(description="Version of this format.")
    ] = "llmserve/v1"
    kind: Annotated[Literal["LLMServe"], Field(description="What the file describes; always `LLMServe`.")]
    metadata: Annotated[Metadata, Field(description="What the cluster is called.")] = Metadata()
    models: Annotated[Models, Field(description="What is served.")]
    deployment: Annotated[Deployment, Field(description="Where the roles run, how many of each.")] = (
        Deployment()
    )
    engine: Annotated[EngineConfig, Field(description="One engine; every worker has its own.")] = (
        EngineConfig()
    )
    kv_cache: Annotated[KvCacheConfig, Field(description="The KV blocks of an engine.")] = KvCacheConfig()
    storageClasses: Annotated[  # noqa: N815 - the YAML key
        tuple[StorageClass, ...],
        Field(strict=False, description="Tiers below device memory that keep KV blocks."),
    ] = ()
    transfer: Annotated[TransferConfig, Field(description="How KV moves between engines.")] = TransferConfig()
    budgets: Annotated[Budgets, Field(description="What all running requests may use.")] = Budgets()
    scheduling: Annotated[Scheduling, Field(description="Queueing and time limits.")] = Scheduling()
    api: Annotated[Api, Field(description="What clients meet at the HTTP port.")] = Api()
    security: Annotated[Security, Field(description="Who may use the cluster.")] = Security()
    state: Annotated[State, Field(description="Where shared state is.")] = State()
    observability: Annotated[Observability, Field(description="Logs, metrics and traces.")] = Observability()
