"""`llmserve reload`: brings a changed manifest to the cluster that runs."""

import argparse
import asyncio
import json
from pathlib import Path

from llmserve.cli.cluster import add_cluster, find_cluster
from llmserve.cli.command import EXIT_FAILED, EXIT_OK, Command, add_json
from llmserve.core.errors import InvalidRequest
from llmserve.runner.reloading import reload_now

_ABOUT = """\
Reads the manifest of the cluster that runs here (or of -f, --run-dir) again, and brings it to all processes.
What can change while they run does so at once: weights, budgets, limits, API keys, the log level and more
(marked "live" in docs/configuration.md). What cannot is named with the processes that need a restart, and is
left as it was. A manifest that is wrong, or that processes would refuse at their next start, changes nothing.
With --check nothing is changed at all: it says what a reload would do.

The exit code is 0 when everybody obeys, 2 when the manifest is wrong, and 1 when a process did not confirm.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)
    parser.add_argument("--check", action="store_true", help="say what would change, and change nothing")
    add_json(parser)


def _run(options: argparse.Namespace) -> int:
    cluster = find_cluster(options)
    path = Path(cluster.state.manifest)
    if options.file and Path(options.file).resolve() != path.resolve():
        raise InvalidRequest(
            f"{cluster.state.name} was started with {path}, which its processes read when they start again: "
            "change that file"
        )
    reloaded = asyncio.run(reload_now(path, cluster.routers, only_check=options.check))
    if options.json:
        print(json.dumps(reloaded.as_json(), indent=2))
    else:
        print("\n".join(reloaded.lines()))
    return EXIT_FAILED if reloaded.failed else EXIT_OK


COMMAND = Command("reload", "bring a changed manifest to a running cluster", _ABOUT, _configure, _run)
