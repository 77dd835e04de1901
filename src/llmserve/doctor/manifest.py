"""Checks whether `llmserve up` would succeed with a manifest, as far as can be seen without starting it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from llmserve.config.environment import note as environment_note
from llmserve.config.load import load_manifest
from llmserve.config.plan import LocalPlan, ProcessSpec
from llmserve.config.plan_types import engine_names, ranges
from llmserve.config.schema import Manifest, ModelSpec
from llmserve.config.speculation import loaded_draft
from llmserve.core.errors import LLMServeError, ManifestError, ModelNotFound, StartFailed
from llmserve.doctor import Finding, note, ok, problem, warning
from llmserve.models.resolve import PreparationStage, Survey, survey
from llmserve.runner.host import size
from llmserve.runner.models.memory import engine_bytes
from llmserve.runner.process.family import Family, members
from llmserve.runner.state import ClusterState, read_state

_SHOWN_ENGINES = 8


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Checked(Generic[_T]):
    """thing: what the next checks need; None when there is none, as the finding says."""

    finding: Finding
    thing: _T | None = None


def load(path: Path) -> Checked[Manifest]:
    try:
        manifest = load_manifest(path)
    except ManifestError as error:
        return Checked(problem("manifest", f"{path}: wrong", error.message))
    return Checked(ok("manifest", f"{path}: correct, cluster {manifest.metadata.name}"), manifest)


def start(refused: Sequence[str]) -> Finding:
    """refused: what roles would refuse at their start, each with file and line."""
    if refused:
        return problem("start", "would fail", "; ".join(refused), refused=len(refused))
    return ok("start", "no role would refuse", refused=0)


def engines(manifest: Manifest, plan: Callable[[Manifest], LocalPlan]) -> Checked[LocalPlan]:
    """plan: `plan_here`."""
    try:
        planned = plan(manifest)
    except LLMServeError as error:
        return Checked(problem("engines", "cannot be planned", error.message))
    workers = [process for process in planned.processes if process.role.is_worker]
    value = "; ".join(map(_share, workers[:_SHOWN_ENGINES]))
    if len(workers) > _SHOWN_ENGINES:
        value += f"; and {len(workers) - _SHOWN_ENGINES} more"
    if planned.notes:
        return Checked(warning("engines", value, " ".join(planned.notes), engines=len(workers)), planned)
    return Checked(ok("engines", value, engines=len(workers)), planned)


def _share(worker: ProcessSpec) -> str:
    if worker.gpus:
        return f"{worker.name} on GPU {ranges(worker.gpus)}"
    return f"{worker.name} on core {ranges(worker.cores)}" if worker.cores else f"{worker.name} on any core"


def ports(addresses: Sequence[str], check_free: Callable[[Sequence[str]], None]) -> Finding:
    """addresses: HOST:PORT of the HTTP API. check_free: that of runner.machine."""
    try:
        check_free(addresses)
    except StartFailed as error:
        return problem("port", "taken", f"{error.message}. Stop that, or change deployment.local.port.")
    return ok("port", f"{', '.join(addresses)} free")


_STILL_TO_DO = {
    PreparationStage.TO_CONVERT: "`llmserve up` does that once, which takes seconds to minutes.",
    PreparationStage.TO_DOWNLOAD: "`llmserve up` does that; it needs the network, and HF_TOKEN for a gated "
    "model.",
}


def model(spec: ModelSpec, *, proposes: bool = False) -> Checked[Survey]:
    """proposes: it is the draft of another model."""
    name = "draft model" if proposes else "model"
    try:
        seen = survey(spec, proposes=proposes)
    except ModelNotFound as error:
        return Checked(problem(name, "not found", error.message))
    figures = {"weight_bytes": seen.weight_bytes}
    if seen.stage is PreparationStage.READY:
        return Checked(ok(name, f"{spec.served_name}, ready, {size(seen.weight_bytes)}", **figures), seen)
    value = f"{spec.served_name}, {seen.stage} from {seen.place}"
    return Checked(note(name, value, _STILL_TO_DO[seen.stage], **figures), seen)


def loaded(manifest: Manifest) -> list[Checked[Survey]]:
    """Checks what each engine of a manifest of one model loads: the model first, then its draft if it has
    one."""
    draft = loaded_draft(manifest)
    return [model(manifest.model), *([model(draft, proposes=True)] if draft else [])]


def engine_memory(manifest: Manifest, weight_bytes: Mapping[str, int], available_bytes: float) -> Finding:
    """For engines on the CPU. weight_bytes: of each model."""
    names = [one.model for one in engine_names(manifest)]
    needed = sum(engine_bytes(manifest.for_model(name), weight_bytes[name]) for name in names)
    value = f"about {size(needed)} for {len(names)} engine{'s' if len(names) > 1 else ''}"
    figures = {"needed_bytes": needed, "available_bytes": available_bytes}
    if needed > available_bytes:
        advice = (
            f"Only {size(available_bytes)} are available: lower kv_cache.memory_gb (now "
            f"{manifest.kv_cache.memory_gb:g}), or deployment.replicas."
        )
        return warning("engine memory", value, advice, **figures)
    return ok("engine memory", value, **figures)


def environment(ignored: Sequence[str]) -> Finding:
    """ignored: settings in this shell that do not reach the processes of a cluster."""
    if ignored:
        return note("environment", ", ".join(ignored), environment_note(ignored), variables=len(ignored))
    return ok("environment", "no settings besides the manifest", variables=0)


def run_directory(run_dir: Path, living: Callable[[ClusterState], set[int]]) -> Finding:
    """living: returns the pids of a cluster's processes, `processes_of`."""
    try:
        state = read_state(run_dir)
    except LLMServeError as error:
        return note("run directory", str(run_dir), f"{error.message}. The next `llmserve up` removes it.")
    if state is None:
        return ok("run directory", f"{run_dir}: nothing left of an earlier run")
    if state.is_running:
        return ok("run directory", f"{run_dir}: in use by the running cluster")
    pids = sorted(living(state))
    value = f"{run_dir}: left by a run that was killed (pid {state.pid})"
    if pids:
        advice = f"Processes of it still run: {', '.join(map(str, pids))}. The next `llmserve up` ends them."
        return warning("run directory", value, advice, processes=len(pids))
    return note("run directory", value, "The next `llmserve up` removes it.", processes=0)


def processes_of(state: ClusterState) -> set[int]:
    return members(Family(f"{state.cluster_id}/"))
