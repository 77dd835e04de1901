"""Finds the running cluster that a command is about."""

import argparse
import getpass
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmserve.config.load import load_manifest
from llmserve.config.schema import Manifest
from llmserve.core.errors import InvalidRequest, Unavailable
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import SECRET_NAME, Credentials, certificates_in
from llmserve.rpc.leader import RouterAddresses
from llmserve.runner.state import STATE_NAME, ClusterState, read_state, run_dir_of

DEFAULT_MANIFEST = "llmserve.yaml"
_RUN_DIRS = ".llmserve"
_K8S_FLAGS = ("namespace", "context", "image", "out", "apply", "force_conflicts")


@dataclass(frozen=True, slots=True)
class FoundCluster:
    run_dir: Path
    state: ClusterState

    @property
    def routers(self) -> RouterAddresses:
        """The routers, router-0 first. Errors: StartFailed when the cluster's secret cannot be read."""
        return RouterAddresses(tuple(routers_of(self.state.roles).values()), self.credentials)

    @property
    def credentials(self) -> Credentials:
        """What an operator shows, who may read the cluster's secret. Errors: as above."""
        return operator(self.state)

    @property
    def kvmanagers(self) -> dict[str, str]:
        """HOST:PORT of each kvmanager, by its name."""
        return kvmanagers_of(self.state.roles)


def operator(state: ClusterState | None = None) -> Credentials:
    """Returns the credentials of this user, who may not be allowed to read the cluster's secret. state: that
    of the cluster; None: it was not started here, and LLMSERVE_CLUSTER_SECRET_FILE names its secret, if it
    has one. Errors: StartFailed when that cannot be read."""
    file = os.path.join(state.temp_dir, SECRET_NAME) if state else ""
    certificates = certificates_in(Path(state.temp_dir)) if state else None
    return Credentials.read(
        CallerRole.OPERATOR, _user(), file if os.path.exists(file) else None, certificates
    )


def _user() -> str:
    """The name of this user, or the number where it has none, as in containers."""
    try:
        return getpass.getuser()
    except KeyError:
        return str(os.getuid())


def routers_of(roles: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns HOST:PORT of each router, by its name. Every role but the routers themselves knows all of
    them."""
    return _named("router", (role["routers"] for role in roles if role["role"] != "router"))


def kvmanagers_of(roles: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns HOST:PORT of each kvmanager, by its name."""
    return _named("kvmanager", (role["kvmanagers"] for role in roles))


def _named(name: str, lists: Iterable[Sequence[str]]) -> dict[str, str]:
    addresses = next(filter(None, lists), ())
    return {f"{name}-{index}": address for index, address in enumerate(addresses)}


def add_cluster(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("-f", "--file", metavar="FILE", help="the manifest that it was started with")
    which.add_argument("--run-dir", metavar="DIR", help="its run directory (deployment.local.run_dir)")


def add_cluster_or_router(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `find_routers` reads."""
    add_cluster(parser)
    parser.add_argument("--router", metavar="HOST:PORT", help="of a cluster that was not started here")


def find_routers(options: argparse.Namespace) -> RouterAddresses:
    """Errors: as those of `find_cluster`."""
    if options.router:
        return RouterAddresses((options.router,), operator())
    return find_cluster(options).routers


def find_cluster(options: argparse.Namespace) -> FoundCluster:
    """Finds the cluster by --run-dir or --file; without them the one that runs below the current
    directory. Errors: Unavailable when it does not run, InvalidRequest when several do."""
    if options.run_dir:
        return cluster_in(Path(options.run_dir))
    if options.file:
        path = Path(options.file)
        return cluster_in(run_dir_of(load_manifest(path), path))
    return _only_one_here()


def cluster_in(run_dir: Path) -> FoundCluster:
    """Errors: Unavailable when no cluster runs there."""
    state = read_state(run_dir)
    if state is None or not state.is_running:
        raise Unavailable(f"no cluster runs in {run_dir}")
    return FoundCluster(run_dir, state)


def running_here() -> list[FoundCluster]:
    """Returns the clusters that run below the current directory."""
    return [
        FoundCluster(path.parent, state)
        for path in sorted(Path(_RUN_DIRS).glob(f"*/{STATE_NAME}"))
        if (state := read_state(path.parent)) is not None and state.is_running
    ]


def _only_one_here() -> FoundCluster:
    found = running_here()
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(one.run_dir) for one in found)
        raise InvalidRequest(f"several clusters run here: choose one with --run-dir: {names}")
    if Path(DEFAULT_MANIFEST).is_file():  # it may name a run directory elsewhere
        path = Path(DEFAULT_MANIFEST)
        return cluster_in(run_dir_of(load_manifest(path), path))
    raise Unavailable("no cluster runs here; name its manifest with -f, or its run directory with --run-dir")


def is_k8s(options: argparse.Namespace, manifest: Manifest) -> bool:
    """Errors: InvalidRequest for a flag that means nothing on this machine."""
    mode = options.mode or manifest.deployment.mode
    if mode != "k8s":
        _refuse_flags(options)
    return mode == "k8s"


def asked_for_k8s(options: argparse.Namespace) -> Manifest | None:
    """Returns the manifest of a cluster in Kubernetes, by --mode or by -f. None: the command is about this
    machine."""
    if options.mode == "k8s":
        return load_manifest(options.file or DEFAULT_MANIFEST)
    if options.mode is None and options.file:
        manifest = load_manifest(options.file)
        return manifest if is_k8s(options, manifest) else None
    _refuse_flags(options)
    return None


def _refuse_flags(options: argparse.Namespace) -> None:
    """Errors: InvalidRequest for a flag that means nothing on this machine."""
    for name in _K8S_FLAGS:
        if getattr(options, name, None):
            raise InvalidRequest(f"--{name.replace('_', '-')} needs --mode k8s")
