"""The engine that a manifest asks for."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from llmserve.config.lora import lora_of
from llmserve.config.plan_types import BINDING_VARIABLE, ProcessRole, engine_names, forks_engine
from llmserve.config.schema import EngineConfig, Lora, Manifest, ModelSpec
from llmserve.config.speculation import draft_of, speculation_of
from llmserve.core.adapters import NO_ADAPTERS, LoraShape
from llmserve.core.errors import ManifestError, StartFailed
from llmserve.core.ids import WorkerId
from llmserve.core.process import importing
from llmserve.core.request import WorkerRole
from llmserve.engines.base import Engine
from llmserve.engines.sim.engine import SimEngine
from llmserve.engines.sim.link import open_handover_link
from llmserve.engines.sim.step import RealStepTimer
from llmserve.engines.spec import EngineSpec
from llmserve.engines.vllm.environment import PRELOAD_VARIABLE, preloaded, set_engine_environment
from llmserve.engines.vllm.transformers_import import import_transformers
from llmserve.models import Progress, resolve
from llmserve.models.adapters.base_weights import read_base_weights
from llmserve.models.directory import model_identity
from llmserve.models.resolve import digest_cache
from llmserve.rpc.role import reached_at

if TYPE_CHECKING:
    from llmserve.engines.vllm.early_process import EarlyProcess


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """path None: a simulated engine without a model. identity: see models/directory.py. draft: the model
    that proposes tokens to it, if one does."""

    path: Path | None
    identity: str
    draft: "WorkerModel | None" = None

    def check_unchanged(self) -> None:
        """Called once the engine has loaded the files: are they still what they were named by? Reads those
        that were touched since. Errors: StartFailed, LLMServeError."""
        if self.path is not None and model_identity(self.path, digest_cache()) != self.identity:
            raise StartFailed(f"the model in {self.path} was changed while it was loaded; start again")
        if self.draft is not None:
            self.draft.check_unchanged()


def prepare_model(manifest: Manifest, model_dir: Path | None, progress: Progress) -> WorkerModel:
    """model_dir: of the primary model, when that is prepared already. Errors: ModelNotFound,
    LLMServeError."""
    if model_dir is not None:
        primary = WorkerModel(model_dir, model_identity(model_dir, digest_cache(), progress))
    else:
        primary = _prepared(manifest.model, manifest.engine.kind, progress)
    draft = draft_of(manifest)
    return replace(primary, draft=_prepared(draft, manifest.engine.kind, progress) if draft else None)


def _prepared(model: ModelSpec, kind: str, progress: Progress) -> WorkerModel:
    if kind == "sim":
        return WorkerModel(None, hashlib.sha256(model.served_name.encode()).hexdigest())
    prepared = resolve(model, progress=progress)
    return WorkerModel(prepared.path, prepared.identity)


def engine_spec(
    manifest: Manifest,
    worker_id: str,
    role: WorkerRole,
    epoch: int,
    model: WorkerModel,
    listen: str,
    kvmanagers: tuple[str, ...] = (),
) -> EngineSpec:
    """manifest: of one model. Errors: ManifestError, ModelNotFound."""
    return EngineSpec(
        worker_id=WorkerId(worker_id),
        epoch=epoch,
        role=role,
        model_dir=model.path,
        model_name=manifest.model.served_name,
        model_identity=model.identity,
        engine=manifest.engine,
        kv_cache=manifest.kv_cache,
        transfer=manifest.transfer,
        handover_host=reached_at(listen),
        kv_store=kvmanagers if manifest.storageClasses else (),
        kv_store_quantize=_dram_quantize(manifest),
        lora=_lora_shape(lora_of(manifest), model.path),
        speculation=speculation_of(manifest),
        draft_dir=model.draft.path if model.draft else None,
        draft_identity=_draft_identity(manifest, model),
    )


def _draft_identity(manifest: Manifest, model: WorkerModel) -> str:
    """Layers of the model itself are named by the model's own contents, but only some engines use them."""
    if model.draft is not None:
        return model.draft.identity
    speculation = speculation_of(manifest)
    return "mtp" if speculation is not None and speculation.method == "mtp" else ""


def _lora_shape(lora: Lora | None, model_dir: Path | None) -> LoraShape:
    """model_dir None: a simulated engine, whose adapters may change anything. Errors: ManifestError."""
    if lora is None:
        return NO_ADAPTERS
    modules = lora.target_modules or (read_base_weights(model_dir).linear_modules() if model_dir else ())
    if model_dir and not modules:
        message = "the model's weights do not say which modules adapters may change: name them here"
        raise ManifestError(message, key=("lora", "target_modules"))
    return LoraShape(lora.slots, lora.max_rank, modules)


def _dram_quantize(manifest: Manifest) -> str:
    formats = (one.format for one in manifest.storageClasses if one.tier == "dram")
    return next((one.quantize for one in formats), "none")


def kv_io_share(cluster: Manifest) -> float | None:
    """Returns the bytes per second of each engine that fetches KV: equal parts of the budget, whatever the
    model. cluster: the manifest with all models."""
    limit = cluster.budgets.max_kv_io_gbps
    fetching = sum(one.role is not ProcessRole.PREFILL for one in engine_names(cluster))
    return None if limit is None else limit * 1e9 / 8 / fetching


@contextmanager
def early_process(engine: EngineConfig) -> Iterator["EarlyProcess | None"]:
    """Makes the process that an engine on CPUs will run in. Call it before this process has threads. None:
    vLLM makes one itself."""
    already = os.environ.get(PRELOAD_VARIABLE, "")
    has_libraries = BINDING_VARIABLE in os.environ and preloaded(already) == already
    if not has_libraries or not forks_engine(engine):
        yield None
        return
    set_engine_environment(compiles=False, on_cpu=True)  # torch reads it when it is imported
    with importing():
        import_transformers()
        from llmserve.engines.vllm.early_process import made_early

    with made_early() as process:
        yield process


def build_engine(
    spec: EngineSpec, registry: CollectorRegistry | None, process: "EarlyProcess | None" = None
) -> Engine:
    """registry: gets the engine's own metrics, if it has any; None: they are not counted. process: the one
    that the engine runs in, if it was made already."""
    if spec.engine.kind == "sim":
        return SimEngine(spec, open_handover_link, RealStepTimer())
    with importing():
        from llmserve.engines.vllm.engine import VllmEngine

    return VllmEngine(spec, registry, process)
