"""python -m llmserve.apiserver --manifest llmserve.yaml --http 127.0.0.1:8000 --router 127.0.0.1:7000"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop
from prometheus_client import REGISTRY

from llmserve.apiserver.app import ServedModel
from llmserve.apiserver.service import Apiserver, ApiserverOptions, prepare_process
from llmserve.config.load import load_manifest
from llmserve.config.schema import Manifest
from llmserve.core.errors import LLMServeError
from llmserve.metrics.registry import MetricsServer
from llmserve.models import resolve

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llmserve.apiserver",
        description="The HTTP front of a cluster: the OpenAI and Anthropic APIs.",
    )
    parser.add_argument("--manifest", type=Path, required=True, help="the cluster's YAML")
    parser.add_argument("--name", default="apiserver-0", help="unique in the cluster")
    parser.add_argument("--http", default="", help="HOST:PORT to serve on; the manifest's by default")
    parser.add_argument("--router", required=True, help="HOST:PORT of the router")
    parser.add_argument("--model-dir", type=Path, help="the prepared model; prepared here when not given")
    parser.add_argument("--metrics-port", type=int, default=0, help="a second port for /metrics; 0: none")
    parser.add_argument("--run-dir", type=Path, help="working directory of the cluster")
    return parser.parse_args()


def options(flags: argparse.Namespace, manifest: Manifest) -> ApiserverOptions:
    model, local = manifest.models.primary, manifest.deployment.local
    return ApiserverOptions(
        name=flags.name,
        http=flags.http or f"{local.host}:{local.port}",
        router=flags.router,
        model=ServedModel(model.served_name, flags.model_dir or Path(resolve(model).path)),
    )


async def serve(flags: argparse.Namespace, manifest: Manifest) -> None:
    """Until SIGTERM or SIGINT; a second one exits at once."""
    stop = asyncio.Event()
    _on_signals(stop)
    apiserver = Apiserver(options(flags, manifest), manifest, REGISTRY)
    metrics = MetricsServer(REGISTRY, "127.0.0.1", flags.metrics_port)
    try:
        await apiserver.start()
        if flags.metrics_port:
            await metrics.start()
        print(f"LLMSERVE_READY {flags.name}", flush=True)
        await stop.wait()
    finally:
        await metrics.aclose()
        await apiserver.aclose()


def _on_signals(stop: asyncio.Event) -> None:
    def asked() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked)


def main() -> int:
    flags = arguments()
    level = os.environ.get("LLMSERVE_LOG_LEVEL", "info").upper()
    logging.basicConfig(level=level, stream=sys.stderr, format=_LOG_FORMAT)
    try:
        manifest = load_manifest(flags.manifest)
        prepare_process()
        uvloop.run(serve(flags, manifest))
    except LLMServeError as error:
        print(f"{flags.name}: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
