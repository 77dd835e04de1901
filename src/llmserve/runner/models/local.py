"""The models of a local cluster, from the first orders of its router to its end."""

import asyncio
from collections.abc import Mapping, Sequence

from llmserve.config.plan import ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.core.tasks import TaskOwner
from llmserve.rpc.leader import RouterAddresses
from llmserve.runner.models.follower import ModelFollower
from llmserve.runner.models.manager import ModelManager, ModelProcesses
from llmserve.runner.models.processes import needed_memory
from llmserve.runner.process.supervisor import ProcessSupervisor


class LocalModels:
    """Life: begin (once). Its tasks are the owner's. Without routers (there are none in some tests) nobody
    orders anything."""

    def __init__(self, manifest: Manifest, routers: RouterAddresses, owner: TaskOwner) -> None:
        self._manifest, self._routers, self._owner = manifest, routers, owner
        self._manager: ModelManager | None = None

    async def wants(self, spec: ProcessSpec) -> bool:
        """Returns whether a process of the plan is to be started."""
        return self._manager is None or not spec.model or await self._manager.wants(spec.model)

    @property
    def names(self) -> list[str]:
        """The models that are there, or come."""
        if self._manager is None:
            return [one.served_name for one in self._manifest.served]
        return self._manager.names()

    def begin(
        self,
        processes: ModelProcesses,
        supervisors: Sequence[ProcessSupervisor],
        model_dirs: Mapping[str, str],
    ) -> None:
        """supervisors: of all processes of the plan. model_dirs: of the models of the manifest, by name."""
        if not self._routers.addresses:
            return
        workers: dict[str, list[ProcessSupervisor]] = {name: [] for name in model_dirs}
        for one in supervisors:
            if one.spec.model:
                workers[one.spec.model].append(one)
        names = {model: [one.spec.name for one in found] for model, found in workers.items()}
        manager = self._manager = ModelManager(
            self._manifest, names, processes, self._owner, lambda: follower.report()
        )
        follower = ModelFollower(self._routers, manager.reports, manager.apply)
        self._owner.spawn("models", follower.run(), fatal=True)
        for model, found in workers.items():
            self._owner.spawn(f"ready.{model}", self._until_ready(manager, found, model_dirs[model]))

    async def _until_ready(
        self, manager: ModelManager, workers: Sequence[ProcessSupervisor], directory: str
    ) -> None:
        for one in workers:
            await one.ready.wait()
        model, specs = workers[0].spec.model, [one.spec for one in workers]
        alone = self._manifest.for_model(model)
        needed = await asyncio.to_thread(needed_memory, alone, directory, specs)
        manager.became_ready(model, directory, needed)
