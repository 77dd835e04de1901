"""Finds what roles would refuse at their start on this machine, before anything is started.

The roles' own functions decide; this module gathers the facts for them.
"""

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

from llmserve.config.conflict import Conflict
from llmserve.config.environment import inherited
from llmserve.config.load import locate
from llmserve.config.plan import LocalPlan, runs_on_gpu
from llmserve.config.plan_types import engine_names
from llmserve.config.refusals import unknown_parsers, unset_api_keys
from llmserve.config.schema import Manifest, ModelSpec
from llmserve.config.speculation import draft_source, loaded_draft, speculation_of
from llmserve.core.errors import ModelNotFound, StartFailed
from llmserve.engines.vllm.parsers import parsers_here
from llmserve.kvstore.store.refusals import lasting_refusals, room_refusals
from llmserve.models.adapters.refusals import adapter_refusals
from llmserve.models.refusals import directory_refusals
from llmserve.models.resolve import PreparationStage, survey
from llmserve.router.leader.build import state_refusals
from llmserve.runner.gpus import PinLimits, pinned_refusals
from llmserve.runner.host import Host
from llmserve.runner.machine import available_gpus, check_free
from llmserve.tracing.open import tracer_refusals
from llmserve.transfer.pinned import PinnedMemory

SOURCE = ("models", "primary", "source")
_DEVICE = ("engine", "device")


def of_model(manifest: Manifest) -> Iterator[Conflict]:
    """Finds what vLLM and the model refuse, as they are here; another machine may have others."""
    parsers = parsers_here()
    if parsers is not None:
        yield from unknown_parsers(manifest.engine, parsers)
    folder = yield from _prepared(manifest.model, SOURCE)
    draft = yield from _prepared_draft(manifest)
    if folder is not None:
        yield from _refused(manifest, folder, draft)


def of_model_directory(manifest: Manifest, folder: Path) -> Iterator[Conflict]:
    """folder: of the prepared model. Its draft is looked at when it is prepared as well."""
    draft = yield from _prepared_draft(manifest)
    yield from _refused(manifest, folder, draft)


def _refused(manifest: Manifest, folder: Path, draft: Path | None) -> Iterator[Conflict]:
    try:
        yield from directory_refusals(
            manifest.engine, manifest.kv_cache, folder, speculation_of(manifest), draft
        )
    except ModelNotFound as error:
        yield Conflict((SOURCE,), error.message)


def _prepared_draft(manifest: Manifest) -> Generator[Conflict, None, Path | None]:
    """As _prepared. None also without a draft that engines would load."""
    draft = loaded_draft(manifest)
    return None if draft is None else (yield from _prepared(draft, draft_source(manifest.engine)))


def _prepared(model: ModelSpec, key: tuple[str, ...]) -> Generator[Conflict, None, Path | None]:
    """Yields why a model cannot be had. Returns its directory; None: it is still to be prepared. key: of its
    source."""
    try:
        seen = survey(model)
    except ModelNotFound as error:
        yield Conflict((key,), error.message)
        return None
    return Path(seen.place) if seen.stage is PreparationStage.READY else None


def here(manifest: Manifest, base: Mapping[str, str] = os.environ) -> Iterator[Conflict]:
    """Finds everything that another try would not cure. base: the environment of `llmserve up`."""
    environment = inherited(base, manifest).kept
    gpus = available_gpus()
    yield from _gpus(manifest, gpus)
    if runs_on_gpu(manifest, gpus) and gpus:
        pinned = PinnedMemory.of_host(manifest, len(list(engine_names(manifest))))
        yield from pinned_refusals(manifest, pinned, PinLimits.of(Host()))
    yield from unset_api_keys(manifest.security.api_keys, environment)
    yield from state_refusals(manifest.state, environment)
    yield from tracer_refusals(manifest.observability.tracing)
    yield from lasting_refusals(manifest.storageClasses, environment)
    yield from adapter_refusals(manifest.model.adapters)
    yield from of_model(manifest)


def check_reload(manifest: Manifest, path: Path) -> None:
    """Checks a manifest for a cluster that runs: a process that is started again reads it. Two things are
    not checked: the environment, which only the processes know, and whether the model is still there,
    because a key that is to be revoked must not wait for that. Errors: ManifestError."""
    found = [*_gpus(manifest, available_gpus()), *of_model(manifest)]
    sources = (SOURCE, draft_source(manifest.engine))
    if refused := [one for one in found if one.paths[0] not in sources]:
        raise locate(path, refused)


def _gpus(manifest: Manifest, gpus: Sequence[int]) -> Iterator[Conflict]:
    is_asked_for = manifest.engine.kind == "vllm" and manifest.engine.device == "cuda"
    if is_asked_for and not gpus:
        yield Conflict((_DEVICE,), "is cuda, and no GPU is visible here: use cpu or auto")


def now(manifest: Manifest, plan: LocalPlan) -> Iterator[Conflict]:
    """Finds what is missing at this moment, and may be there later. A running cluster holds its own ports
    and memory."""
    yield from room_refusals(manifest.storageClasses)
    local, page = manifest.deployment.local, manifest.observability
    if local.port:
        https = dict.fromkeys(process.http for process in plan.processes if process.http)
        yield from _taken(tuple(https), ("deployment", "local", "port"))
    if page.metrics and page.port and "port" in page.model_fields_set:
        yield from _taken([f"{local.host}:{page.port}"], ("observability", "port"))


def _taken(addresses: Sequence[str], key: tuple[str, ...]) -> Iterator[Conflict]:
    try:
        check_free(addresses)
    except StartFailed as error:
        yield Conflict((key,), error.message)
