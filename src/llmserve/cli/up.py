"""`llmserve up`: run what the manifest describes."""

import argparse
from pathlib import Path

from llmserve.cli.command import EXIT_OK, Command, add_manifest
from llmserve.config.load import load_manifest
from llmserve.core.errors import InvalidRequest

_ABOUT = """\
Runs the cluster of a manifest on this machine and stays in the foreground. Fetches and converts the model if
that was not done before, starts the roles in order, shows what each waits for, and prints how to talk to the
cluster when it is ready. A role that crashes is started again.

Ctrl-C stops it in order: the API refuses new requests, running ones are finished, then the rest goes. A
second Ctrl-C does not wait. Nothing is left behind, also when this process is killed.

Logs are in the run directory (.llmserve/NAME beside the manifest), one file for each role; -v shows them
here.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    add_manifest(parser)
    parser.add_argument(
        "--mode", choices=("local", "k8s"), help="where to run; wins over deployment.mode of the manifest"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the logs of all roles here")


def _run(options: argparse.Namespace) -> int:
    from llmserve.runner.up import up

    if options.mode == "k8s":
        raise InvalidRequest("--mode k8s: not available yet; --mode local runs the cluster on this machine")
    path = Path(options.file)
    up(load_manifest(path), path, options.verbose)
    return EXIT_OK


COMMAND = Command("up", "run a cluster on this machine", _ABOUT, _configure, _run)
