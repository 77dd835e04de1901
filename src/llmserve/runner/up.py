"""Local mode as its callers see it: plan a manifest, and run it."""

import asyncio
import shutil
import time
from pathlib import Path

from rich.console import Console as RichConsole

from llmserve.config.conflict import Conflict
from llmserve.config.load import locate
from llmserve.config.plan import LocalPlan, plan_local
from llmserve.config.schema import Manifest
from llmserve.core.errors import LLMServeError, ManifestError, StartFailed
from llmserve.runner import machine, preflight
from llmserve.runner.cluster import ClusterJob, Ending, run_cluster
from llmserve.runner.console import Console
from llmserve.runner.environment import default_run_dir
from llmserve.runner.guard import TERM_SECONDS
from llmserve.runner.processes import (
    SHARED_MEMORY_DIR,
    Family,
    end,
    members,
    remove_unused_shared_memory,
    shared_memory,
)
from llmserve.runner.state import STATE_NAME, ClusterState, RunLock, read_state


def plan_here(manifest: Manifest) -> LocalPlan:
    """The plan for this machine as it is now. Errors: ManifestError, StartFailed."""
    return plan_local(manifest, machine.available_cores(), machine.pick_port, machine.available_gpus())


def check_here(manifest: Manifest, manifest_path: Path) -> LocalPlan:
    """The plan of a manifest that can be started on this machine. Errors: ManifestError with a line for each
    thing that a role would refuse at its start; StartFailed."""
    refused, plan = list(preflight.here(manifest)), None
    try:
        plan = plan_here(manifest)
    except ManifestError as error:
        refused.append(Conflict.of(error))
    if plan is None or refused:
        raise locate(manifest_path, refused)
    return plan


def run_dir_of(manifest: Manifest, manifest_path: Path) -> Path:
    return default_run_dir(manifest_path, manifest.metadata.name, manifest.deployment.local.run_dir)


def up(manifest: Manifest, manifest_path: Path, verbose: bool) -> Ending:
    """Runs the cluster until a signal stops it. Errors: LLMServeError."""
    run_dir = run_dir_of(manifest, manifest_path)
    with RunLock(run_dir):
        clear_leftovers(run_dir)
        plan = check_here(manifest, manifest_path)
        if missing := list(preflight.now(manifest, plan)):
            raise StartFailed(locate(manifest_path, missing).message)
        job = ClusterJob(manifest, manifest_path, plan, run_dir, verbose)
        console = Console(RichConsole(highlight=False), time.monotonic)
        return asyncio.run(run_cluster(job, console))


def clear_leftovers(run_dir: Path) -> bool:
    """Whether there was anything. The caller knows that no supervisor runs in run_dir. Blocks for as long
    as its processes take to end."""
    try:
        state = read_state(run_dir)
    except LLMServeError:  # half a file is a leftover too
        state = None
    else:
        if state is None:
            return False
    if state is not None:
        _end_processes(state)
    (run_dir / STATE_NAME).unlink(missing_ok=True)
    return True


def _noted_shared_memory(state: ClusterState) -> set[str]:
    """Of processes that are gone too. The file is only text: nothing outside of /dev/shm is believed."""
    noted = {str(path) for role in state.roles for path in role.get("shared_memory", ())}
    return {path for path in noted if Path(path).parent == SHARED_MEMORY_DIR}


def _end_processes(state: ClusterState) -> None:
    """Found by their mark alone: the pids in the file may be those of others by now."""
    family = Family(f"{state.cluster_id}/", frozenset())
    segments = shared_memory(members(family)) | _noted_shared_memory(state)
    end(lambda: members(family), TERM_SECONDS)
    remove_unused_shared_memory(segments)
    if f"llmserve-{state.cluster_id[:8]}-" in state.temp_dir:
        shutil.rmtree(state.temp_dir, ignore_errors=True)
