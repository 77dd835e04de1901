"""One local cluster from its plan to its end: `llmserve up`."""

import asyncio
import os
import shutil
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from llmserve.config.environment import inherited
from llmserve.config.environment import note as note_of
from llmserve.config.load import locate
from llmserve.config.plan import LocalPlan, ProcessRole, ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.core.addresses import join_address
from llmserve.core.errors import StartFailed
from llmserve.core.hang import HangLimits
from llmserve.core.tasks import TaskOwner, first_done
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.client import Backoff
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.leader import RouterAddresses
from llmserve.runner import logs, preflight
from llmserve.runner.board import Board, ProcessState, StateWriter, addresses_to_bind
from llmserve.runner.console import Console, ready_banner
from llmserve.runner.environment import (
    RunPaths,
    certificate_files,
    fetch_command,
    make_paths,
    role_command,
    role_mark,
)
from llmserve.runner.exporter import ClusterExporter
from llmserve.runner.guard_link import GuardLink
from llmserve.runner.machine import HttpPort, check_free
from llmserve.runner.models.local import LocalModels
from llmserve.runner.models.processes import LocalProcesses, fetch_model
from llmserve.runner.process.family import Family, end
from llmserve.runner.process.policy import RestartPolicy
from llmserve.runner.process.run import prepare_models
from llmserve.runner.process.supervisor import ProcessJob, ProcessSupervisor
from llmserve.runner.reloading import Reloading
from llmserve.runner.roster import ProcessRoster
from llmserve.runner.state import STATE_NAME, DrainedMark
from llmserve.runner.supervisor import StopRequest, Supervisor

MODEL_STEP = "model"
_REFRESH_SECONDS = 0.25
_SHORTEN_SECONDS = 1.0
# Bound of the silence of a process that works, which Kubernetes has too (k8s/render/pods.py).
_BUSY_HANG_SECONDS = 60.0
_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """verbose: shows the roles' log lines too."""

    manifest: Manifest
    manifest_path: Path
    plan: LocalPlan
    run_dir: Path
    verbose: bool = False


class Ending(Enum):
    ORDERLY = "orderly"
    FORCED = "forced"


async def run_cluster(job: ClusterJob, console: Console) -> Ending:
    """Runs the cluster until SIGINT, SIGTERM or the end of the terminal; a second one forces. SIGHUP reloads
    the manifest. The caller holds the run directory's lock. Nothing of the cluster is left, however this
    ends. Errors: StartFailed, ManifestError, ModelNotFound."""
    check_free(addresses_to_bind(job.plan.processes))
    cluster_id = uuid.uuid4().hex
    log_dir, mtls = job.manifest.observability.log_dir, job.manifest.security.mtls
    certificates = mtls.directory if mtls else None
    paths = make_paths(job.manifest_path, job.run_dir, log_dir, cluster_id, certificates)
    cluster = _Cluster(job, console, cluster_id, paths)
    try:
        await cluster.run()
    finally:
        await cluster.aclose()
    return cluster.ending


class _Cluster:
    """Life: run (once) -> aclose."""

    def __init__(self, job: ClusterJob, console: Console, cluster_id: str, paths: RunPaths) -> None:
        self._job = job
        self._console = console
        self._id = cluster_id
        self._paths = paths
        self._began = time.monotonic()
        self._board = Board([MODEL_STEP, *(spec.name for spec in job.plan.processes)], time.monotonic)
        self._tasks = TaskOwner("cluster")
        self._guard = GuardLink(f"{cluster_id}/", self._tasks)
        self._stop = StopRequest()
        self._http_port = HttpPort(job.plan.processes)
        self._credentials = Credentials.read(
            CallerRole.OPERATOR, "llmserve up", str(paths.secret), paths.certificates
        )
        self._routers = RouterAddresses(_routers(job.plan.processes), self._credentials)
        self._reloading = Reloading(
            paths.manifest,
            self._routers,
            console.say,
            watch=job.manifest.deployment.local.reload_on_change,
        )
        model = job.manifest.served[0].served_name
        self._environment = inherited(os.environ, job.manifest)
        self._exporter: ClusterExporter | None = None
        name = job.manifest.metadata.name
        self._state = StateWriter(self._board, job.plan, paths, cluster_id=cluster_id, name=name, model=model)
        self._roster = ProcessRoster(job.plan.processes, self._board, self._state, paths)
        self._models = LocalModels(job.manifest, self._routers, self._tasks)
        self._metrics_address = ""  # HOST:PORT of the page of all metrics

    async def run(self) -> None:
        self._http_port.open()
        self._begin()
        await self._start_exporter()
        model_dirs = await self._unless_stopped(self._prepare_models())
        if model_dirs is None:
            return
        self._state.update(model_dir=next(iter(model_dirs.values())))
        supervisors = [self._supervisor(spec, self._paths, model_dirs) for spec in self._job.plan.processes]
        supervisor = Supervisor(supervisors, self._board, self._stop, self._models.wants)
        self._models.begin(self._hands_of(supervisor), supervisors, model_dirs)
        await supervisor.run(self._on_ready, self._on_stopping)

    def _hands_of(self, supervisor: Supervisor) -> LocalProcesses:
        return LocalProcesses(
            self._paths.temp_dir / "models", self._roster, supervisor, self._fetch_one, self._worker
        )

    def _begin(self) -> None:
        for name in self._board.rows:
            logs.begin(self._paths.log(name))
        self._stop.listen(self._reloading.ask)
        self._guard.remove_at_end(self._paths.temporary, self._paths.run_dir / STATE_NAME)
        self._guard.start()
        self._state.start()
        for note in self._job.plan.notes:
            self._console.say(f"Note: {note}")
        if self._environment.ignored:
            self._console.say(f"Note: {note_of(self._environment.ignored)}")
        self._console.follow(self._board)
        self._console.live(True)
        self._tasks.spawn("console", self._show())
        self._tasks.spawn("reload", self._reloading.run())
        self._tasks.spawn("logs", self._keep_logs_short())

    async def _start_exporter(self) -> None:
        """Errors: StartFailed when the manifest names the port. The default one may be another cluster's."""
        manifest = self._job.manifest
        settings, host = manifest.observability, manifest.deployment.local.host
        if not (settings.metrics and settings.port):
            return
        exporter = ClusterExporter(
            manifest.metadata.name,
            self._job.plan.processes,
            self._board,
            (host, settings.port),
            certificates=certificate_files(manifest, self._paths),
        )
        try:
            await exporter.start()
        except StartFailed as error:
            if "port" in settings.model_fields_set:
                raise
            self._console.say(f"Note: no page of all metrics: {error.message}")
            return
        self._exporter = self._roster.exporter = exporter
        self._metrics_address = join_address(host, settings.port)
        self._state.update(metrics=self._metrics_address)

    async def _show(self) -> None:
        follower = logs.LogFollower({})
        while True:
            if self._job.verbose:
                follower.follow({name: self._paths.log(name) for name in self._board.rows})
                for name, line in follower.new_lines():
                    self._console.say(f"{name} | {line}")
            self._console.refresh()
            await asyncio.sleep(_REFRESH_SECONDS)

    async def _keep_logs_short(self) -> None:
        most_bytes = self._job.manifest.observability.log_file_mib << 20
        while True:
            paths = [self._paths.log(name) for name in self._board.rows]
            await asyncio.to_thread(_shorten_all, paths, most_bytes)
            await asyncio.sleep(_SHORTEN_SECONDS)

    async def _unless_stopped(self, work: Coroutine[None, None, dict[str, str]]) -> dict[str, str] | None:
        """Returns the result of the work; None: a stop was asked for first, and the work was cancelled."""
        done, _ = await first_done("cluster", work, self._stop.asked.wait())
        return None if done.cancelled() else done.result()

    async def _prepare_models(self) -> dict[str, str]:
        self._board.set(MODEL_STEP, ProcessState.STARTING, "looking for it")
        command = fetch_command(self._paths, MODEL_STEP, self._id, self._environment.kept)
        model_dirs = await prepare_models(
            command, self._guard, lambda text: self._board.set(MODEL_STEP, ProcessState.STARTING, text)
        )
        if refused := list(preflight.of_model_directories(self._job.manifest, model_dirs)):
            raise locate(self._paths.manifest, refused)
        self._board.set(MODEL_STEP, ProcessState.READY, ", ".join(model_dirs.values()))
        return model_dirs

    async def _fetch_one(self, name: str, manifest: Path, on_progress: Callable[[str], None]) -> str:
        logs.begin(self._paths.log(name))
        paths = replace(self._paths, manifest=manifest)
        command = fetch_command(paths, name, self._id, self._environment.kept)
        return await fetch_model(command, self._guard, on_progress)

    def _worker(self, spec: ProcessSpec, manifest: Path, directory: str) -> ProcessSupervisor:
        """manifest: of its model alone."""
        return self._supervisor(spec, replace(self._paths, manifest=manifest), {spec.model: directory})

    def _supervisor(
        self, spec: ProcessSpec, paths: RunPaths, model_dirs: Mapping[str, str]
    ) -> ProcessSupervisor:
        share = self._http_port.share_of(spec)
        command = role_command(spec, paths, model_dirs, self._id, self._environment.kept, share)
        local = self._job.manifest.deployment.local
        hang = HangLimits(local.hang_seconds, max(local.hang_seconds, _BUSY_HANG_SECONDS))
        drained = DrainedMark(self._paths.temp_dir, spec.name) if spec.role.is_worker else None
        manifest, mark = paths.manifest, role_mark(self._id, spec.name)
        job = ProcessJob(
            spec, manifest, command, mark, local.ready_timeout_seconds, hang, drained, self._credentials
        )
        policy = RestartPolicy(Backoff(_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS))
        return ProcessSupervisor(job, policy, self._board, self._guard, self._console.say)

    def _on_ready(self) -> None:
        self._state.update(stand=ProcessState.READY)
        self._console.live(False)
        seconds = time.monotonic() - self._began
        logs_at, urls = str(self._paths.log_dir), self._job.plan.base_urls
        names, metrics = self._models.names, self._metrics_address
        banner = ready_banner(self._job.manifest, urls, seconds, logs_at, metrics, names)
        self._console.say(banner)

    def _on_stopping(self) -> None:
        self._http_port.close()
        self._state.update(stand=ProcessState.STOPPING)
        self._console.live(False)
        if self._stop.asked.is_set():
            self._console.say("Stopping; once more to force.")

    @property
    def ending(self) -> Ending:
        return Ending.FORCED if self._stop.forced.is_set() else Ending.ORDERLY

    async def aclose(self) -> None:
        """Ends what is left and removes the files of the run. The guard looks once more when we are gone."""
        self._console.live(False)
        self._http_port.close()
        if self._exporter is not None:
            await self._exporter.aclose()
        await self._tasks.aclose()
        await asyncio.to_thread(end, Family(f"{self._id}/"), 1.0)
        for folder in self._paths.temporary:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            (self._paths.run_dir / STATE_NAME).unlink()
        await self._guard.aclose()


def _shorten_all(paths: Sequence[Path], most_bytes: int) -> None:
    for path in paths:
        logs.shorten(path, most_bytes)


def _routers(processes: Sequence[ProcessSpec]) -> tuple[str, ...]:
    """Returns HOST:PORT of each router. Every process that talks to the routers knows all of them."""
    others = (spec.routers for spec in processes if spec.role is not ProcessRole.ROUTER)
    return next((routers for routers in others if routers), ())
