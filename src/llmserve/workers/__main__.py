"""python -m llmserve.workers --role decode --manifest llmserve.yaml --listen 127.0.0.1:7100"""

import argparse
import asyncio
import logging
import os
import signal
import time
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry

from llmserve.config.load import load_manifest
from llmserve.config.schema import Manifest
from llmserve.core.errors import LLMServeError
from llmserve.core.outcome import WorkerRole
from llmserve.core.process import exit_process
from llmserve.rpc.role import (
    add_kvmanagers,
    addresses,
    configure_logging,
    own_environment,
    report_failure,
)
from llmserve.tracing.base import Tracer
from llmserve.tracing.open import open_tracer
from llmserve.workers.build import WorkerModel, build_engine, engine_spec, prepare_model
from llmserve.workers.worker import Worker, WorkerOptions

_log = logging.getLogger(__name__)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llmserve.workers",
        description="One engine behind gRPC: prefill, decode, or both.",
    )
    parser.add_argument("--role", type=WorkerRole, choices=list(WorkerRole), required=True)
    parser.add_argument("--manifest", type=Path, required=True, help="the cluster's YAML")
    parser.add_argument("--name", required=True, help="unique in the cluster, such as decode-0")
    parser.add_argument("--listen", required=True, help="HOST:PORT of its gRPC service; peers use this host")
    parser.add_argument(
        "--router",
        type=addresses,
        default=(),
        metavar="HOST:PORT,...",
        help="of each router; none: stays alone",
    )
    add_kvmanagers(parser, "none: no reports")
    parser.add_argument("--model-dir", type=Path, help="the prepared model; prepared here when not given")
    parser.add_argument("--metrics-port", type=int, default=0, help="port of /metrics; 0: none")
    parser.add_argument("--run-dir", type=Path, help="working directory of the cluster")
    parser.add_argument("--drain-seconds", type=float, default=5.0, help="for running requests at stop")
    return parser.parse_args()


async def serve(flags: argparse.Namespace, manifest: Manifest, model: WorkerModel) -> None:
    """Until SIGTERM or SIGINT; a second one exits at once. Errors: StartFailed, EngineDead."""
    stop = asyncio.Event()
    _on_signals(stop)
    epoch = time.time_ns()
    spec = engine_spec(
        manifest, flags.name, flags.role, epoch, model, flags.listen, kvmanagers=flags.kvmanager
    )
    options = WorkerOptions(
        listen=flags.listen,
        routers=flags.router,
        kvmanagers=flags.kvmanager,
        metrics_port=flags.metrics_port,
        drain_seconds=flags.drain_seconds,
        check_model=model.check_unchanged,
    )
    registry = CollectorRegistry()
    engine = build_engine(spec, registry if flags.metrics_port else None)
    worker = Worker(spec, options, engine, registry, _tracer(manifest, flags, registry))
    try:
        _say("LLMSERVE_PROGRESS", f"starting the {spec.engine.kind} engine")
        await worker.start()
        _say("LLMSERVE_READY", flags.name)
        await worker.run_until(stop)
    finally:
        await worker.stop()


def _tracer(manifest: Manifest, flags: argparse.Namespace, registry: CollectorRegistry) -> Tracer:
    return open_tracer(
        manifest.observability.tracing,
        role=flags.role.value,
        process=flags.name,
        cluster=manifest.metadata.name,
        registry=registry,
    )


def _say(word: str, text: str) -> None:
    """A line for the runner."""
    print(word, text, flush=True)


def _report(text: str) -> None:
    _log.info("model: %s", text)
    _say("LLMSERVE_PROGRESS", text)


def _on_signals(stop: asyncio.Event) -> None:
    def asked() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked)


def main() -> int:
    flags = arguments()
    try:
        manifest = load_manifest(flags.manifest)
        configure_logging(manifest.observability, flags.name)
        own_environment(manifest)
        uvloop.run(serve(flags, manifest, prepare_model(manifest, flags.model_dir, _report)))
    except LLMServeError as error:
        report_failure(flags.name, error)
        return 1
    return 0


if __name__ == "__main__":
    exit_process(main())
