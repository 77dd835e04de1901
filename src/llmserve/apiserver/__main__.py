"""python -m llmserve.apiserver --manifest FILE --name NAME --http HOST:PORT --router HOST:PORT"""

import argparse
import sys
from pathlib import Path

from prometheus_client import REGISTRY

from llmserve.apiserver.app import ServedModel
from llmserve.apiserver.role import ApiserverRole
from llmserve.apiserver.service import ApiserverOptions, prepare_process
from llmserve.config.load import load_manifest
from llmserve.config.schema import Manifest
from llmserve.models import resolve
from llmserve.rpc.role import common_flags, configure_logging, run_role


def flags() -> argparse.ArgumentParser:
    parser = common_flags("apiserver", listens=False)
    parser.add_argument("--http", required=True, help="host:port of the HTTP API")
    parser.add_argument("--router", required=True, help="host:port of the router")
    parser.add_argument("--model-dir", type=Path, help="the prepared model; prepared here when not given")
    return parser


def options(given: argparse.Namespace, manifest: Manifest) -> ApiserverOptions:
    model = manifest.models.primary
    directory = given.model_dir or Path(resolve(model).path)
    return ApiserverOptions(
        name=given.name,
        http=given.http,
        router=given.router,
        model=ServedModel(model.served_name, directory),
    )


def main() -> int:
    given = flags().parse_args()

    async def build() -> ApiserverRole:
        manifest = load_manifest(given.manifest)
        configure_logging(manifest.observability.log_level)
        prepare_process()
        # The default registry: vLLM's layer registers its own metrics there.
        return ApiserverRole(options(given, manifest), manifest, REGISTRY, metrics_port=given.metrics_port)

    return run_role(given.name, build)


if __name__ == "__main__":
    sys.exit(main())
