"""The processes of models in a local cluster, as ModelManager has them started and ended."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from llmserve.config.conflict import refuse
from llmserve.config.plan import ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.config.speculation import loaded_draft
from llmserve.config.wanted_models import ModelOrder
from llmserve.models.directory import weight_files
from llmserve.models.resolve import survey
from llmserve.runner import machine, preflight
from llmserve.runner.machine import HeldPorts
from llmserve.runner.models.engines import MachineParts, plan_model
from llmserve.runner.models.manager import PlannedModel
from llmserve.runner.models.memory import FreeMemory, NeededMemory, check_room
from llmserve.runner.process.child import ProcessCommand
from llmserve.runner.process.family import MEMBER_VARIABLE, Family, end
from llmserve.runner.process.run import SessionLog, prepare_models
from llmserve.runner.process.supervisor import ProcessSupervisor
from llmserve.runner.roster import ProcessRoster
from llmserve.runner.supervisor import Supervisor

Fetch = Callable[[str, Path, Callable[[str], None]], Awaitable[str]]
Make = Callable[[ProcessSpec, Path, str], ProcessSupervisor]


class LocalProcesses:
    """A ModelProcesses. folder: gets a manifest for each model, which its processes read. fetch: prepares the
    model of a manifest, and returns its directory; its first argument names the process that does. make:
    makes the supervisor of a worker, of a manifest's only model in a directory."""

    def __init__(
        self,
        folder: Path,
        roster: ProcessRoster,
        supervisor: Supervisor,
        fetch: Fetch,
        make: Make,
    ) -> None:
        self._folder, self._roster, self._supervisor = folder, roster, supervisor
        self._fetch, self._make = fetch, make
        self._like = next(roster.workers(), None)  # whose routers and KV managers others have, too
        self._ports: dict[str, HeldPorts] = {}  # by the model's name

    async def prepare(self, manifest: Manifest, on_progress: Callable[[str], None]) -> str:
        """Errors: ManifestError for what engines here would refuse; those of the fetch."""
        await asyncio.to_thread(lambda: refuse(preflight.here(manifest)))
        return await fetch_checked(manifest, self._path(manifest), self._fetch, on_progress)

    async def plan(self, manifest: Manifest, directory: str, swap: Sequence[str]) -> PlannedModel:
        """Errors: ManifestError, StartFailed, as plan_model."""
        ports = self._ports_of(manifest.model.served_name)
        here = MachineParts(machine.available_cores(), machine.available_gpus(), ports.pick)
        staying = [worker for worker in self._roster.workers() if worker.name not in swap]
        assert self._like is not None, "each plan has a worker"
        workers = tuple(plan_model(manifest, here, self._like, staying))
        needed = await asyncio.to_thread(needed_memory, manifest, directory, workers)
        return PlannedModel(directory, workers, needed)

    async def check_room(
        self, name: str, needed: NeededMemory, leaving: NeededMemory, coming: Sequence[NeededMemory]
    ) -> None:
        """Errors: StartFailed."""
        free = await asyncio.to_thread(FreeMemory.here)
        check_room(name, needed, free, leaving=leaving, coming=coming)

    async def start(
        self,
        order: ModelOrder,
        manifest: Manifest,
        planned: PlannedModel,
        on_progress: Callable[[str], None],
    ) -> None:
        """Errors: StartFailed, ManifestError."""
        self._roster.add(planned.workers)
        path = self._path(manifest)
        made = [self._make(worker, path, planned.directory) for worker in planned.workers]
        await self._supervisor.add(made)

    async def stop(self, workers: Sequence[str]) -> None:
        await self._supervisor.remove(workers)
        models = {worker.model for worker in self._roster.workers() if worker.name in workers}
        self._roster.remove(workers)
        for model in models & self._ports.keys() - {worker.model for worker in self._roster.workers()}:
            self._ports.pop(model).close()

    def _ports_of(self, model: str) -> HeldPorts:
        """Returns none yet; those of an earlier plan, which did not start, are given back."""
        if model in self._ports:
            self._ports[model].close()
        return self._ports.setdefault(model, HeldPorts())

    def _path(self, manifest: Manifest) -> Path:
        return self._folder / f"{manifest.model.slug}.yaml"


def needed_memory(manifest: Manifest, directory: str, workers: Sequence[ProcessSpec]) -> NeededMemory:
    """manifest: of one model. workers: its engines."""
    alone = manifest.for_model(manifest.model.served_name)
    return NeededMemory.of(alone, weight_bytes(alone, directory), workers)


def weight_bytes(alone: Manifest, directory: str) -> int:
    """Returns the size of the weights that each engine loads, with those of a draft. alone: as for_model
    returns it."""
    draft = loaded_draft(alone)
    own = sum(file.stat().st_size for file in weight_files(Path(directory)))
    return own + (survey(draft, proposes=True).weight_bytes if draft else 0)


async def fetch_checked(
    manifest: Manifest, path: Path, fetch: Fetch, on_progress: Callable[[str], None]
) -> str:
    """Returns the directory of the model, which engines can have. path: gets the manifest, which is of the
    model alone. Errors: ManifestError for what engines would refuse; those of the fetch."""
    await asyncio.to_thread(write_manifest, path, manifest)
    directory = await fetch(f"{manifest.model.slug}-model", path, on_progress)
    found = {manifest.model.served_name: directory}
    await asyncio.to_thread(lambda: refuse(preflight.of_model_directories(manifest, found)))
    return directory


async def fetch_model(
    command: ProcessCommand, sessions: SessionLog, on_progress: Callable[[str], None]
) -> str:
    """Returns the directory of the only model that the command prepares. After an error no process of it is
    left. Errors: as prepare_models."""
    try:
        found = await prepare_models(command, sessions, on_progress)
    except BaseException:
        family = Family(command.env[MEMBER_VARIABLE])
        await asyncio.shield(asyncio.to_thread(end, family, 0))
        raise
    return next(iter(found.values()))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """JSON is YAML, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(manifest.model_dump_json(exclude_unset=True, indent=1))
