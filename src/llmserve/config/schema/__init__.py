"""The manifest `kind: LLMServe` as one frozen tree. Attribute names are the YAML keys.

Sections are passed to whoever needs them, never the whole tree. load.py reads a manifest from YAML, and
docs/configuration.md is generated from these classes.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llmserve.config.schema.batches import Batches
from llmserve.config.schema.callers import ApiKey
from llmserve.config.schema.deployment import Deployment, LocalDeployment, Replicas
from llmserve.config.schema.engine import (
    EngineConfig,
    EnvVariable,
    KvCacheConfig,
    SimSpec,
    Speculation,
    TransferConfig,
)
from llmserve.config.schema.lora import Lora
from llmserve.config.schema.models import AdapterSpec, Metadata, Models, ModelSpec
from llmserve.config.schema.scheduling import Budgets, Scheduling, TenantBudget, TenantWeight
from llmserve.config.schema.section import ManifestSection, merged
from llmserve.config.schema.security import HttpTls, InternalTls, Security
from llmserve.config.schema.served import ServedModel
from llmserve.config.schema.service import Api, Observability, State, Tracing
from llmserve.config.schema.storage import EncryptionKey, StorageClass, StorageFormat
from llmserve.core.errors import ManifestError

__all__ = [
    "AdapterSpec",
    "Api",
    "ApiKey",
    "Batches",
    "Budgets",
    "Deployment",
    "EncryptionKey",
    "EngineConfig",
    "EnvVariable",
    "HttpTls",
    "InternalTls",
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
    "ServedModel",
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


def _form_of_models(written: Any) -> str:
    return "several models" if isinstance(written, list | tuple) else "one model"


class Manifest(ManifestSection):
    """A cluster: what is served, and by how many processes."""

    apiVersion: Literal["llmserve/v1"] = "llmserve/v1"  # noqa: N815 - the YAML key
    """The version of this format."""
    kind: Literal["LLMServe"]
    """What the file describes; always `LLMServe`."""
    metadata: Metadata = Metadata()
    models: Annotated[
        Annotated[Models, Tag("one model")]
        | Annotated[tuple[ServedModel, ...], Field(strict=False, min_length=1), Tag("several models")],
        Discriminator(_form_of_models),
    ]
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
    batches: Batches = Batches()
    security: Security = Security()
    state: State = State()
    observability: Observability = Observability()

    @property
    def served(self) -> tuple[ServedModel, ...]:
        """The models, in the order of the manifest."""
        return (ServedModel.only(self.models),) if isinstance(self.models, Models) else self.models

    @property
    def model(self) -> ServedModel:
        """The model of a manifest that has one, as those that `for_model` returns."""
        (model,) = self.served
        return model

    def entry(self, name: str) -> ServedModel:
        """Returns the model of this name for clients. Errors: ManifestError."""
        named = {one.served_name: one for one in self.served}
        if name not in named:
            message = f"there is no model '{name}'; there is {', '.join(named)}"
            raise ManifestError(f"models: {message}", key=("models",))
        return named[name]

    def for_model(self, name: str) -> "Manifest":
        """Returns the manifest as if this model were the only one, with its own keys merged into the sections
        `deployment`, `engine`, `kv_cache` and `lora`. name: that for clients. Errors: ManifestError."""
        return self.alone(self.entry(name))

    def alone(self, model: ServedModel) -> "Manifest":
        """As for_model, of an entry of `served`."""
        if isinstance(self.models, Models):
            return self
        sections = {
            "models": (model.without_sections(),),
            "deployment": self._deployment_of(model),
            "engine": merged(self.engine, model.engine),
            "kv_cache": merged(self.kv_cache, model.kv_cache),
            "lora": merged(self.lora, model.lora) if self.lora and model.lora else model.lora or self.lora,
        }
        return self.model_copy(update=sections)

    def _deployment_of(self, model: ServedModel) -> Deployment:
        deployment, own = self.deployment, model.replicas
        disaggregated = deployment.disaggregated if model.disaggregated is None else model.disaggregated
        is_split_otherwise = disaggregated != deployment.disaggregated
        counts = {name: count for name, count in own if count is not None}
        if is_split_otherwise and not disaggregated:
            counts = {"prefill": 0} | counts
        replicas = deployment.replicas.model_copy(update=counts)
        return deployment.model_copy(update={"disaggregated": disaggregated, "replicas": replicas})
