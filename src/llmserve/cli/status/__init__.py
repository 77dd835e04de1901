"""`llmserve status`: shows what runs, how it is, and what it does."""

import argparse
import asyncio
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from llmserve.cli.cluster import FoundCluster, add_cluster, asked_for_k8s, cluster_in, find_cluster
from llmserve.cli.command import EXIT_FAILED, EXIT_OK, Command, add_json, add_mode
from llmserve.cli.screen import Frame, screen, watch
from llmserve.cli.status.ask import ask
from llmserve.cli.status.page import page
from llmserve.core.process import read_effort
from llmserve.overview.snapshot import snapshot
from llmserve.overview.views import Snapshot, as_json

_ABOUT = """\
Shows the cluster that runs here (or of -f, --run-dir): each process with its health; for workers also their
requests, KV blocks and the transport that brought KV; tenants with their queues, budgets in use, storage
classes, who fetches KV from whom; leases, and orphaned blocks (0, or a bug). The exit code is 0 when all is
well and 1 otherwise, so scripts can ask too.

Columns: REQUESTS running+waiting; BLOCKS in use/all, and how many hold reusable prefixes; KV IN is what the
worker fetched from others, over which transport, and how many attempts failed. "KV FROM, TO" has the chosen
transport of each pair with its speed: of what requests moved, before that of a probe. The table below it has
a line for each way to fetch KV: its measured speed, what came that way, and why it is out of use if it is
(--watch shows those with trouble only). HIT TOKENS were not computed because a storage class had them
(`llmserve kv stats` has more).

--watch goes on showing it, as a page that redraws itself; into a file or pipe, one page after the other, and
with --json a line for each look. A cluster that goes away is shown, and found again when it is back.

With --mode k8s it shows the workloads of the cluster in Kubernetes, and what keeps their pods from running.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)
    add_mode(parser)
    add_json(parser)
    parser.add_argument("-w", "--watch", action="store_true", help="go on showing it, until Ctrl-C")
    parser.add_argument(
        "--every", type=_seconds, default=1.0, metavar="SECONDS", help="with --watch: how often (default: 1)"
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError("must be 0.1 to 3600 seconds")
    return value


def _run(options: argparse.Namespace) -> int:
    manifest = asked_for_k8s(options)
    if manifest is not None:
        from llmserve.cli import k8s  # takes half a second of CPU

        return k8s.status(options, manifest)
    found = find_cluster(options)
    if options.watch:
        watch(partial(_frame, found.run_dir), options.every, as_json=options.json)
        return EXIT_OK
    now = _look(found)
    if options.json:
        print(json.dumps(as_json(now), indent=2))
    else:
        console = screen()
        console.print(page(now, console.width))
    return EXIT_FAILED if now.problems else EXIT_OK


def _frame(run_dir: Path) -> Frame:
    """Errors: Unavailable when the cluster does not run there now."""
    now = _look(cluster_in(run_dir))
    return Frame(lambda width: page(now, width, ways=False), as_json(now))


def _look(found: FoundCluster) -> Snapshot:
    answers = asyncio.run(ask(found.state.roles, found.credentials))
    now, pid = snapshot(found.state, answers, time.time()), found.state.pid
    if not read_effort([pid]).stopped:
        return now
    stopped = f"the supervisor is stopped, so nothing that ends is started again: kill -CONT {pid}"
    return replace(now, problems=(stopped, *now.problems))


COMMAND = Command("status", "show roles, health, load, KV blocks, transports", _ABOUT, _configure, _run)
