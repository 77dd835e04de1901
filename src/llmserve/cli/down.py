"""`llmserve down`: stops a cluster from another terminal."""

import argparse
import os
import signal
import time

from llmserve.cli.cluster import FoundCluster, add_cluster, asked_for_k8s, find_cluster
from llmserve.cli.command import EXIT_OK, Command, add_mode
from llmserve.core.errors import LLMServeError

_POLL_SECONDS = 0.1
_ORDERLY_SECONDS = 90.0  # the runner's own deadlines for each role, together
_FORCED_SECONDS = 40.0

_ABOUT = """\
Stops the cluster that runs here (or of -f, --run-dir) as Ctrl-C in its terminal does, and returns when
nothing of it is left. Running requests are finished first; --force does not wait for them.

With --mode k8s it deletes the objects of the cluster in Kubernetes, and waits until its pods are gone.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)
    add_mode(parser)
    parser.add_argument("--force", action="store_true", help="do not wait for running requests")


def _run(options: argparse.Namespace) -> int:
    manifest = asked_for_k8s(options)
    if manifest is not None:
        from llmserve.cli import k8s  # takes half a second of CPU

        return k8s.down(options, manifest)
    cluster = find_cluster(options)
    name = cluster.state.name
    print(f"Stopping {name} (pid {cluster.state.pid}) ...", flush=True)
    began = time.monotonic()
    _signal(cluster)
    if options.force:
        time.sleep(_POLL_SECONDS)  # two equal signals at once would be one
        _signal(cluster)
    _wait(cluster, _FORCED_SECONDS if options.force else _ORDERLY_SECONDS)
    print(f"{name} has stopped ({time.monotonic() - began:.0f} s).")
    return EXIT_OK


def _signal(cluster: FoundCluster) -> None:
    """Errors: LLMServeError for a cluster of another user."""
    if not cluster.state.is_running:
        return
    try:
        os.kill(cluster.state.pid, signal.SIGTERM)
        os.kill(cluster.state.pid, signal.SIGCONT)  # one that is stopped would not see it
    except ProcessLookupError:
        return
    except PermissionError:
        raise LLMServeError(
            f"pid {cluster.state.pid} belongs to another user: it may not be stopped"
        ) from None


def _wait(cluster: FoundCluster, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while cluster.state.is_running:
        if time.monotonic() > deadline:
            raise LLMServeError(
                f"{cluster.state.name} still runs after {seconds:.0f} s: see {cluster.state.log_dir}; "
                "`llmserve down --force` does not wait"
            )
        time.sleep(_POLL_SECONDS)


COMMAND = Command("down", "stop a cluster", _ABOUT, _configure, _run)
