"""The modelmanager: has the models of a cluster on Kubernetes that the router orders.

Kubernetes keeps what outlives this process: each model that was started has a ConfigMap with its order.
"""

import asyncio
import logging
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry

from llmserve.config.plan_types import fetch_arguments
from llmserve.config.schema import Manifest
from llmserve.core.errors import LLMServeError
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.registry import metrics_beside
from llmserve.rpc.leader import RouterAddresses
from llmserve.rpc.server import RpcServer
from llmserve.runner import logs
from llmserve.runner.environment import role_mark
from llmserve.runner.models.follower import ModelFollower
from llmserve.runner.models.manager import ModelManager
from llmserve.runner.models.pods import PodProcesses, planned
from llmserve.runner.models.processes import fetch_model
from llmserve.runner.process.child import ProcessCommand
from llmserve.runner.process.family import MEMBER_VARIABLE

_log = logging.getLogger(__name__)


class ModelManagerRole:
    """Life: start (once) -> wait -> aclose (idempotent). Made inside a running loop. manifest: the whole one
    of the cluster. processes: closed with the role. listen: serves health alone. metrics_port 0: no metrics
    endpoint."""

    def __init__(
        self,
        manifest: Manifest,
        processes: PodProcesses,
        routers: RouterAddresses,
        *,
        listen: str,
        metrics_port: int = 0,
    ) -> None:
        self._owner, self._processes = TaskOwner("modelmanager"), processes
        self._begins_seconds = manifest.deployment.k8s.ready_timeout_seconds / 2  # the kubelet waits longer
        self._manager = ModelManager(manifest, {}, processes, self._owner, lambda: self._follower.report())
        self._follower = ModelFollower(routers, self._manager.reports, self._manager.apply)
        self._server = RpcServer(listen, routers.credentials)
        registry = CollectorRegistry()
        routers.credentials.show_expiry(registry)
        self._metrics = metrics_beside(listen, metrics_port, registry, self._server.is_serving)

    async def start(self) -> None:
        """It says that it serves when the pods of all models are asked for, so that `llmserve up` waits for
        them; a long download holds that up for a while only. Errors: StartFailed."""
        for one in await self._processes.found():
            try:
                place = planned(self._manager.alone(one.order), one.directory)
                self._manager.resume(one.order, place, was_ready=one.was_ready)
            except LLMServeError as error:  # an earlier release may have taken what this one refuses
                _log.warning("model %s is left as it is: %s", one.order.name, error.message)
        await self._server.start(is_serving=False)
        if self._metrics:
            await self._metrics.start()
        self._owner.spawn("follow", self._follower.run(), fatal=True)
        self._owner.spawn("begin", self._begin(), fatal=True)

    async def _begin(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._begins_seconds):
                await self._manager.until_begun()
        await self._server.set_serving(True)

    async def wait(self) -> None:
        """Raises when it cannot go on."""
        raise await self._owner.failed

    async def aclose(self) -> None:
        """Engines go on: the next modelmanager finds them."""
        await self._owner.aclose()
        await self._server.aclose(0.0)
        if self._metrics:
            await self._metrics.aclose()
        self._processes.close()


class Fetcher:
    """Prepares models, each in a process of its own, as `llmserve up` does. folder: gets its logs."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._id = folder, uuid.uuid4().hex

    async def __call__(self, name: str, manifest: Path, on_progress: Callable[[str], None]) -> str:
        log = self._folder / f"{name}.log"
        logs.begin(log)
        env = {**os.environ, MEMBER_VARIABLE: role_mark(self._id, name)}
        return await fetch_model(ProcessCommand(fetch_arguments(str(manifest)), env, log), self, on_progress)

    def session_started(self, pid: int) -> None:
        """It ends with the pod, whatever happens to this process."""

    session_ended = session_started
