"""The command line of the apiserver, and what it says."""

import argparse
from pathlib import Path

from llmserve.apiserver.options import DRAIN_SECONDS, ApiserverOptions, ServedModel
from llmserve.config.schema import Manifest
from llmserve.core.shared_port import PortShare
from llmserve.models import resolve
from llmserve.rpc.role import addresses, common_flags, report_progress


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
    model = manifest.models.primary
    if given.model_dir is None:
        report_progress(f"preparing the model {model.source}")
    directory = given.model_dir or Path(resolve(model).path)
    return ApiserverOptions(
        name=given.name,
        http=given.http,
        routers=given.router,
        model=ServedModel(model.served_name, directory),
        drain_seconds=given.drain_seconds,
        manifest=Path(given.manifest),
        share=given.port_share,
        compiles_ahead=manifest.engine.kind == "vllm",
    )
