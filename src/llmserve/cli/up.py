"""`llmserve up`: runs what the manifest describes."""

import argparse
from pathlib import Path

from llmserve.cli.cluster import is_k8s
from llmserve.cli.command import EXIT_OK, Command, add_manifest, add_mode
from llmserve.config.load import load_manifest

_ABOUT = """\
Runs the cluster of a manifest on this machine and stays in the foreground. Fetches and converts the model if
that was not done before, starts the roles in order, shows what each waits for, and prints how to talk to the
cluster when it is ready. A role that crashes is started again.

Ctrl-C stops it in order: the API refuses new requests, running ones are finished, then the rest goes. A
second Ctrl-C does not wait. Nothing is left behind, also when this process is killed.

Logs are in the run directory (.llmserve/NAME beside the manifest), one file for each role; -v shows them
here.

With --mode k8s it makes the objects of the cluster in Kubernetes (docs/kubernetes.md): it shows what would
change there, and with --apply changes it and waits until all pods are ready. --out DIR writes the objects as
YAML instead, and needs no cluster.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    add_manifest(parser)
    add_mode(parser)
    _add_k8s(parser)
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show more: the logs of all roles; k8s: all objects"
    )


def _add_k8s(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", metavar="IMAGE", help="k8s: wins over deployment.k8s.image")
    parser.add_argument(
        "--apply", action="store_true", help="k8s: make the changes; without it they are only shown"
    )
    parser.add_argument(
        "--force-conflicts", action="store_true", help="k8s: also change fields that others have set"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="k8s: write the objects there, with a kustomization"
    )


def _run(options: argparse.Namespace) -> int:
    path = Path(options.file)
    manifest = load_manifest(path)
    # Each of the two takes half a second of CPU to import.
    if is_k8s(options, manifest):
        from llmserve.cli import k8s

        return k8s.up(options, manifest)
    from llmserve.runner.up import up

    up(manifest, path, options.verbose)
    return EXIT_OK


COMMAND = Command("up", "run a cluster, on this machine or in Kubernetes", _ABOUT, _configure, _run)
