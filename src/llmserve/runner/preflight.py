"""Finds what roles would refuse at their start on this machine, before anything is started.

The roles' own functions decide; this module gathers the facts for them.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from llmserve.config.conflict import Conflict
from llmserve.config.engine_options import unknown_options
from llmserve.config.environment import inherited
from llmserve.config.load import locate
from llmserve.config.plan import LocalPlan, runs_on_gpu
from llmserve.config.plan_types import engine_names
from llmserve.config.refusals import MODEL_SOURCE, local_wires, unknown_parsers, unusable_api_keys
from llmserve.config.schema import Manifest, ModelSpec
from llmserve.config.several_models import conflict_in_file
from llmserve.config.speculation import draft_source, loaded_draft, speculation_of
from llmserve.core.addresses import join_address
from llmserve.core.errors import ModelNotFound, StartFailed
from llmserve.engines.vllm.sources import arguments_here, parsers_here
from llmserve.kvstore.store.refusals import lasting_refusals, room_refusals
from llmserve.models.adapters.places import adapter_refusals
from llmserve.models.refusals import directory_refusals
from llmserve.models.resolve import PreparationStage, survey
from llmserve.router.leader.build import state_refusals
from llmserve.runner.gpus import PinLimits, pinned_refusals
from llmserve.runner.host import Host
from llmserve.runner.machine import available_gpus, check_free
from llmserve.tracing.open import tracer_refusals
from llmserve.transfer.pinned import PinnedMemory

_DEVICE = ("engine", "device")


_Check = Callable[[Manifest], Iterable[Conflict]]


def _of_each(manifest: Manifest, check: _Check) -> Iterator[Conflict]:
    """check: of a manifest of one model."""
    for model in manifest.served:
        yield from (conflict_in_file(manifest, model, found) for found in check(manifest.alone(model)))


def of_models(manifest: Manifest, *, sources: bool = True) -> Iterator[Conflict]:
    """Finds what vLLM and the models refuse, as they are here; another machine may have others. sources:
    False: no finding is about the place of a model."""
    return _of_each(
        manifest,
        lambda alone: (one for one in _of_model(alone) if sources or one.paths[0] not in _sources(alone)),
    )


def _sources(manifest: Manifest) -> tuple[tuple[str, ...], ...]:
    """Where the manifest names the places of the model and of its draft."""
    return MODEL_SOURCE, draft_source(manifest.engine)


def _of_model(manifest: Manifest) -> Iterator[Conflict]:
    parsers = parsers_here()
    if parsers is not None:
        yield from unknown_parsers(manifest.engine, parsers)
    arguments = arguments_here() if manifest.engine.options else None
    if arguments is not None:
        yield from unknown_options(manifest.engine, arguments)
    folder = yield from _prepared(manifest.model, MODEL_SOURCE)
    draft = yield from _prepared_draft(manifest)
    if folder is not None:
        yield from _refused(manifest, folder, draft)


def of_model_directories(manifest: Manifest, folders: Mapping[str, str]) -> Iterator[Conflict]:
    """folders: of the prepared models, by name. A draft is looked at when it is prepared as well."""
    return _of_each(manifest, lambda alone: _of_directory(alone, Path(folders[alone.model.served_name])))


def _of_directory(manifest: Manifest, folder: Path) -> Iterator[Conflict]:
    draft = yield from _prepared_draft(manifest)
    yield from _refused(manifest, folder, draft)


def _refused(manifest: Manifest, folder: Path, draft: Path | None) -> Iterator[Conflict]:
    try:
        yield from directory_refusals(
            manifest.engine,
            manifest.kv_cache,
            folder,
            speculation_of(manifest),
            draft,
            hands_over=manifest.deployment.disaggregated,
        )
    except ModelNotFound as error:
        yield Conflict((MODEL_SOURCE,), error.message)


def _prepared_draft(manifest: Manifest) -> Generator[Conflict, None, Path | None]:
    """As _prepared. None also without a draft that engines would load."""
    draft = loaded_draft(manifest)
    if draft is None:
        return None
    return (yield from _prepared(draft, draft_source(manifest.engine), proposes=True))


def _prepared(
    model: ModelSpec, key: tuple[str, ...], *, proposes: bool = False
) -> Generator[Conflict, None, Path | None]:
    """Yields why a model cannot be had. Returns its directory; None: it is still to be prepared. key: of its
    source. proposes: as for survey."""
    try:
        seen = survey(model, proposes=proposes)
    except ModelNotFound as error:
        yield Conflict((key,), error.message)
        return None
    return Path(seen.place) if seen.stage is PreparationStage.READY else None


def here(
    manifest: Manifest, base: Mapping[str, str] = os.environ, *, sources: bool = True
) -> Iterator[Conflict]:
    """Finds everything that another try would not cure. base: the environment of `llmserve up`. sources: as
    in of_models."""
    environment = inherited(base, manifest).kept
    gpus = available_gpus()
    yield from _gpus(manifest, gpus)
    names = [one.model for one in engine_names(manifest)]
    if on_gpus := [name for name in names if gpus and runs_on_gpu(manifest.for_model(name), gpus)]:
        pinned = PinnedMemory.of_host(manifest, on_gpus)
        yield from pinned_refusals(manifest, pinned, PinLimits.of(Host()))
    yield from unusable_api_keys(manifest.security.api_keys, environment)
    yield from local_wires(manifest)
    yield from state_refusals(manifest.state, environment)
    yield from tracer_refusals(manifest.observability.tracing)
    yield from lasting_refusals(manifest.storageClasses, environment)
    yield from _of_each(manifest, lambda alone: adapter_refusals(alone.model.adapters))
    yield from of_models(manifest, sources=sources)


def check_reload(manifest: Manifest, path: Path) -> None:
    """Checks a manifest for a cluster that runs: a process that is started again reads it. Two things are
    not checked: the environment, which only the processes know, and whether the model is still there,
    because a key that is to be revoked must not wait for that. Errors: ManifestError."""
    if refused := [*_gpus(manifest, available_gpus()), *of_models(manifest, sources=False)]:
        raise locate(path, refused)


def _gpus(manifest: Manifest, gpus: Sequence[int]) -> Iterator[Conflict]:
    found = Conflict((_DEVICE,), "is cuda, and no GPU is visible here: use cpu or auto")
    return _of_each(manifest, lambda alone: [found] if _needs_gpu(alone) and not gpus else [])


def _needs_gpu(manifest: Manifest) -> bool:
    return manifest.engine.kind == "vllm" and manifest.engine.device == "cuda"


def now(manifest: Manifest, plan: LocalPlan) -> Iterator[Conflict]:
    """Finds what is missing at this moment, and may be there later. A running cluster holds its own ports
    and memory."""
    yield from room_refusals(manifest.storageClasses)
    local, page = manifest.deployment.local, manifest.observability
    if local.port:
        https = dict.fromkeys(process.http for process in plan.processes if process.http)
        yield from _taken(tuple(https), ("deployment", "local", "port"))
    if page.metrics and page.port and "port" in page.model_fields_set:
        yield from _taken([join_address(local.host, page.port)], ("observability", "port"))


def _taken(addresses: Sequence[str], key: tuple[str, ...]) -> Iterator[Conflict]:
    try:
        check_free(addresses)
    except StartFailed as error:
        yield Conflict((key,), error.message)
