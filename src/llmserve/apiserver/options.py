"""The command line of the apiserver, and the options it gives."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from llmserve.config.schema import Manifest
from llmserve.core.shared_port import PortShare
from llmserve.models import resolve
from llmserve.rpc.credentials import CallerRole, Credentials
from llmserve.rpc.leader import RouterAddresses
from llmserve.rpc.role import addresses, common_flags, report_progress

DRAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """directory: config, tokenizer, chat template; its weights are not read here."""

    name: str
    directory: Path


@dataclass(frozen=True, slots=True)
class ApiserverOptions:
    """http: host:port. max_body_bytes: of one HTTP request. drain_seconds: for running requests
    at the stop. manifest: the file, for `/admin/reload`. share: of a port that other processes serve too.
    compiles_ahead: the process that compiles grammars is started now, not by the first grammar. run_dir: the
    directory for files of the cluster; None: there is none, as in a pod."""

    name: str
    http: str
    routers: RouterAddresses
    model: ModelDirectory
    max_body_bytes: int = 32 * 1024 * 1024
    drain_seconds: float = DRAIN_SECONDS
    manifest: Path | None = None
    share: PortShare | None = None
    compiles_ahead: bool = False
    run_dir: str | None = None


def flags() -> argparse.ArgumentParser:
    parser = common_flags("apiserver", listens=False)
    parser.add_argument("--http", required=True, help="host:port of the HTTP API")
    parser.add_argument(
        "--port-share",
        type=PortShare.parse,
        metavar="SOCKET:TABLE:INDEX",
        help="inherited descriptors of a port that several apiservers serve, in addition to --http",
    )
    parser.add_argument("--router", required=True, type=addresses, help="host:port,... of each router")
    parser.add_argument("--model-dir", type=Path, help="the prepared model; prepared here when not given")
    parser.add_argument(
        "--drain-seconds", type=float, default=DRAIN_SECONDS, help="for running requests at stop"
    )
    return parser


def options(given: argparse.Namespace, manifest: Manifest) -> ApiserverOptions:
    """Prepares the model unless its directory was given. Errors: ModelNotFound."""
    model = manifest.model
    if given.model_dir is None:
        report_progress(f"preparing the model {model.source}")
    directory = given.model_dir or Path(resolve(model).path)
    return ApiserverOptions(
        name=given.name,
        http=given.http,
        routers=RouterAddresses(given.router, Credentials.read(CallerRole.APISERVER, given.name)),
        model=ModelDirectory(model.served_name, directory),
        drain_seconds=given.drain_seconds,
        manifest=Path(given.manifest),
        share=given.port_share,
        compiles_ahead=manifest.engine.kind == "vllm",
        run_dir=given.run_dir,
    )
