"""Local mode as its callers see it: plan a manifest, and run it."""

import asyncio
import time
from pathlib import Path

from rich.console import Console as RichConsole

from llmserve.config.conflict import Conflict
from llmserve.config.load import locate
from llmserve.config.plan import LocalPlan, plan_local
from llmserve.config.schema import Manifest
from llmserve.core.errors import ManifestError, StartFailed
from llmserve.runner import machine, preflight
from llmserve.runner.cluster import ClusterJob, Ending, run_cluster
from llmserve.runner.console import Console
from llmserve.runner.environment import default_run_dir
from llmserve.runner.leftovers import clear_leftovers
from llmserve.runner.state import RunLock


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
