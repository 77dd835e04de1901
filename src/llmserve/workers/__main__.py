"""python -m llmserve.workers --role decode --manifest llmserve.yaml --listen 127.0.0.1:7100"""

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from llmserve.config.schema import Manifest
from llmserve.core.errors import LLMServeError
from llmserve.core.process import exit_process
from llmserve.core.request import WorkerRole
from llmserve.models.adapters import open_adapter_cache
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.role import (
    add_kvmanagers,
    addresses,
    common_flags,
    failed,
    leave_no_core_files,
    open_manifest,
    own_environment,
    report_progress,
    run_role,
)
from llmserve.tracing.open import open_tracer
from llmserve.workers.build import (
    WorkerModel,
    build_engine,
    early_process,
    engine_spec,
    kv_io_share,
    prepare_model,
)
from llmserve.workers.worker import Worker, WorkerOptions

if TYPE_CHECKING:
    from llmserve.engines.vllm.early_process import EarlyProcess

_log = logging.getLogger(__name__)


def arguments() -> argparse.Namespace:
    parser = common_flags("workers")
    parser.description = "One engine behind gRPC: prefill, decode, or both."
    parser.add_argument(
        "--model", metavar="NAME", required=True, help="that of the manifest, as clients name it"
    )
    parser.add_argument("--role", type=WorkerRole, choices=list(WorkerRole), required=True)
    parser.add_argument(
        "--router",
        type=addresses,
        default=(),
        metavar="HOST:PORT,...",
        help="of each router; none: stays alone",
    )
    add_kvmanagers(parser, "none: no reports")
    parser.add_argument("--model-dir", type=Path, help="the prepared model; prepared here when not given")
    parser.add_argument("--drain-seconds", type=float, default=5.0, help="for running requests at stop")
    return parser.parse_args()


def build_worker(
    flags: argparse.Namespace, cluster: Manifest, model: WorkerModel, process: "EarlyProcess | None" = None
) -> Worker:
    manifest = cluster.for_model(flags.model)
    spec = engine_spec(
        manifest, flags.name, flags.role, time.time_ns(), model, flags.listen, kvmanagers=flags.kvmanager
    )
    spec = replace(spec, kv_io_bytes_per_second=kv_io_share(cluster))
    options = WorkerOptions(
        listen=flags.listen,
        routers=flags.router,
        kvmanagers=flags.kvmanager,
        metrics_port=flags.metrics_port,
        drain_seconds=flags.drain_seconds,
        check_model=model.check_unchanged,
        open_adapters=lambda shape: open_adapter_cache(manifest, shape, model.path),
        credentials=Credentials.read(CallerRole.WORKER, flags.name),
    )
    registry = CollectorRegistry()
    tracer = open_tracer(
        manifest.observability.tracing,
        role=flags.role.value,
        process=flags.name,
        cluster=manifest.metadata.name,
        registry=registry,
    )
    engine = build_engine(spec, registry if flags.metrics_port else None, process)
    report_progress(f"starting the {spec.engine.kind} engine")
    return Worker(spec, options, engine, registry, tracer)


def _report(text: str) -> None:
    _log.info("model: %s", text)
    report_progress(text)


def main() -> int:
    flags = arguments()
    try:
        cluster, _ = open_manifest(flags)
        manifest = cluster.for_model(flags.model)
        own_environment(manifest)
        # Before there is a loop: it may take minutes, in which a signal ends the process at once.
        model = prepare_model(manifest, flags.model_dir, _report)
    except LLMServeError as error:
        return failed(flags.name, error)

    leave_no_core_files()
    with early_process(manifest.engine) as process:

        async def build() -> Worker:
            return build_worker(flags, cluster, model, process)

        return run_role(flags.name, build)


if __name__ == "__main__":
    exit_process(main())
