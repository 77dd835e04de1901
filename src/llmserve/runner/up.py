"""Local mode as its callers see it: plan a manifest, and run it."""

import asyncio
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
from llmserve.runner.environment import adapter_dram
from llmserve.runner.guard import Remains
from llmserve.runner.machine import HeldPorts
from llmserve.runner.process.family import SHARED_MEMORY_DIR
from llmserve.runner.state import STATE_NAME, ClusterState, RunLock, read_state, run_dir_of


def plan_here(manifest: Manifest, ports: HeldPorts) -> LocalPlan:
    """Returns the plan for this machine as it is now. Errors: ManifestError, StartFailed."""
    return plan_local(manifest, machine.available_cores(), ports.pick, machine.available_gpus())


def check_here(manifest: Manifest, manifest_path: Path, ports: HeldPorts) -> LocalPlan:
    """Returns the plan of a manifest that can be started on this machine. Errors: ManifestError with a line
    for each thing that a role would refuse at its start; StartFailed."""
    refused, plan = list(preflight.here(manifest)), None
    try:
        plan = plan_here(manifest, ports)
    except ManifestError as error:
        refused.append(Conflict.of(error))
    if plan is None or refused:
        raise locate(manifest_path, refused)
    return plan


def up(manifest: Manifest, manifest_path: Path, verbose: bool) -> Ending:
    """Runs the cluster until a signal stops it. Errors: LLMServeError."""
    run_dir = run_dir_of(manifest, manifest_path)
    with RunLock(run_dir), HeldPorts() as ports:
        clear_leftovers(run_dir)
        plan = check_here(manifest, manifest_path, ports)
        if missing := list(preflight.now(manifest, plan)):
            raise StartFailed(locate(manifest_path, missing).message)
        job = ClusterJob(manifest, manifest_path, plan, run_dir, verbose)
        console = Console(RichConsole(highlight=False), time.monotonic)
        return asyncio.run(run_cluster(job, console))


def clear_leftovers(run_dir: Path) -> bool:
    """Removes what a killed supervisor left behind when its guard is gone too. Returns whether there was
    anything. The caller holds the lock of run_dir. Blocks for as long as the processes take to end."""
    path = run_dir / STATE_NAME
    try:
        state = read_state(run_dir)
    except LLMServeError:  # half a file is a leftover too
        path.unlink(missing_ok=True)
        return True
    if state is None:
        return False
    _remains(state).clear()
    path.unlink(missing_ok=True)
    return True


def _remains(state: ClusterState) -> Remains:
    """The processes are found by their mark alone: the pids in the file may be those of others by now. The
    file is only text: no path in it is removed that is not certainly the cluster's."""
    remains = Remains(f"{state.cluster_id}/")
    noted = {str(path) for role in state.roles for path in role.get("shared_memory", ())}
    remains.shared_memory |= {path for path in noted if Path(path).parent == SHARED_MEMORY_DIR}
    if f"llmserve-{state.cluster_id[:8]}-" in state.temp_dir:
        remains.folders |= {state.temp_dir, str(adapter_dram(Path(state.temp_dir)))}
    return remains
