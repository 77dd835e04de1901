"""The apiserver as a role: what it is made of, and the order in which it starts and stops."""

import asyncio
import logging
import os
from collections.abc import Iterator

import torch
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from llmserve.apiserver.adapters.choice import AdapterChoice
from llmserve.apiserver.adapters.manager import AdapterManager
from llmserve.apiserver.adapters.names import AdapterNames
from llmserve.apiserver.adapters.routes import add_adapters
from llmserve.apiserver.batches.build import build_batches, streamed_paths
from llmserve.apiserver.batches.routes import add_batches
from llmserve.apiserver.engine.client import GENERATE, ClusterEngineClient
from llmserve.apiserver.engine.thinking import ThinkingBudgets
from llmserve.apiserver.explain.records import RecordFinder, RequestRecords
from llmserve.apiserver.http.app import DOCS_PATHS, openai_app, serving_args, vllm_config
from llmserve.apiserver.http.errors import is_expected
from llmserve.apiserver.http.gate import Gate, Paths
from llmserve.apiserver.http.headers import Cors
from llmserve.apiserver.http.health import Readiness, api_failure
from llmserve.apiserver.http.original_routes import BaselineTurn, add_original_routes
from llmserve.apiserver.http.response import STOPPING
from llmserve.apiserver.http.routes import add_admin, add_explain
from llmserve.apiserver.http.server import HttpServer
from llmserve.apiserver.http.spans import HttpSpans
from llmserve.apiserver.links.router import RouterLink
from llmserve.apiserver.links.worker import WorkerLinks
from llmserve.apiserver.live_settings import CommandHandler, LiveSettings
from llmserve.apiserver.options import ApiserverOptions
from llmserve.apiserver.request.context import RunContext
from llmserve.apiserver.request.rules import KvIdentity, RetryBudget, RetryLimits
from llmserve.apiserver.responses.serving import ResponsesHandler
from llmserve.apiserver.responses.store import build_store
from llmserve.config.conflict import Conflict, refuse
from llmserve.config.load import read_again
from llmserve.config.refusals import too_long, unknown_parsers
from llmserve.config.schema import Manifest, Scheduling
from llmserve.config.speculation import speculation_of
from llmserve.core.clock import SystemClock
from llmserve.core.errors import InvalidRequest, StartFailed, Unavailable
from llmserve.core.ids import ApiserverId
from llmserve.core.logs import KnownFailures
from llmserve.engines.vllm.failures import Cause
from llmserve.engines.vllm.parsers import parsers_here
from llmserve.metrics.apiserver import ApiserverMetrics
from llmserve.metrics.registry import MetricsServer
from llmserve.models.directory import read_config
from llmserve.rpc.adapter_calls import AdapterClient
from llmserve.rpc.leader import Reloaded, reload_cluster
from llmserve.rpc.role import set_log_level
from llmserve.tracing.open import open_tracer

_log = logging.getLogger(__name__)

_DRAIN_SECONDS = 5.0
_ANSWER_SECONDS = 5.0


class Apiserver:
    """Life: start (once) -> aclose (idempotent, also after a failed start)."""

    def __init__(self, options: ApiserverOptions, manifest: Manifest, registry: CollectorRegistry) -> None:
        self._options, self._manifest, self._registry = options, manifest, registry
        self._live = LiveSettings.of(manifest)
        self._records = RequestRecords(self._live.explain_requests)
        self._tracer = open_tracer(
            manifest.observability.tracing,
            role="apiserver",
            process=options.name,
            cluster=manifest.metadata.name,
            registry=registry,
        )
        self._finder = RecordFinder(self._records, options.name, options.routers)
        metrics = ApiserverMetrics(registry)
        self._workers, self._adapters = WorkerLinks(metrics, options.routers.credentials), AdapterNames()
        self._router = RouterLink(
            options.routers,
            ApiserverId(options.name),
            metrics,
            on_members=self._workers.retain,
            patience_seconds=manifest.scheduling.router_patience_seconds,
            answer=CommandHandler(self._apply, self._finder.find_here).answer,
            on_adapters=self._adapters.update,
        )
        self._adapter_manager = AdapterManager(
            AdapterClient(options.routers, options.model.name),
            self._adapters,
            lambda: self._live.limits.request,
        )
        retries = _retries(manifest.scheduling)
        metrics.retry_budget.set_function(lambda: retries.left)
        self._context = RunContext(
            router=self._router,
            workers=self._workers,
            identity=KvIdentity(tenants_share=manifest.security.kv_sharing == "cluster"),
            metrics=metrics,
            model=options.model.name,
            limits=self._live.limits,
            retries=retries,
            tracer=self._tracer,
        )
        self._batches = build_batches(manifest.batches, options.run_dir, metrics, self._front_door)
        self._store = build_store(manifest, os.environ, SystemClock())
        self._responses: ResponsesHandler | None = None
        self._client: ClusterEngineClient | None = None
        self._gate: Gate | None = None
        self._cors: Cors | None = None
        self._http: HttpServer | None = None

    async def start(self) -> int:
        """Serves; returns the HTTP port. Requests are refused with 503 until router and workers are there.
        Errors: StartFailed; ManifestError when another try would end alike."""
        refuse(self._refusals())
        torch.set_num_threads(1)
        self._router.start()
        needs_pairs = self._manifest.scheduling.disaggregate == "always"
        readiness = Readiness(self._router, needs_pairs=needs_pairs)
        try:
            args = serving_args(
                self._options.model,
                self._manifest.engine,
                self._manifest.api,
                speculates=speculation_of(self._manifest) is not None,
            )
            # In a thread: it takes seconds, in which the session with the router must be served.
            config = await asyncio.to_thread(vllm_config, args)
            task = self._manifest.engine.task
            self._client = ClusterEngineClient(config, self._context, readiness, self._adapters, task)
            app = await openai_app(
                self._client, args, readiness, self._registry, self._add_own, self._store, self._adapters
            )
            if self._generates:
                self._serve_answers(app, self._client)
        except Exception as error:  # vLLM's, transformers' and pydantic's have no common root
            raise Cause.of(error).as_error() from error
        if failure := await api_failure(app):
            raise StartFailed(failure)
        spans = HttpSpans(self._tracer, self._options.model.name)
        api = self._manifest.api
        paths = Paths.of(
            api.root_path,
            DOCS_PATHS if api.public_docs else frozenset(),
            streamed_paths(self._manifest.batches),
        )
        choice = AdapterChoice(app, self._adapters, self._adapter_manager, self._options.model.name)
        self._gate = Gate(choice, self._live.keys, self._options.max_body_bytes, self._records, spans, paths)
        self._client.set_limits(self._live.limits)
        self._cors = Cors(self._gate, self._live.cors_origins)
        self._http = HttpServer(self._cors, self._options.http, self._options.share)
        if api.stream_interval is None:
            self._client.adapt_stream_interval()
        if self._options.compiles_ahead:
            await self._client.start_compiler()
        port = await self._http.start()
        if self._batches is not None:
            self._batches.start()
        return port

    def _front_door(self) -> ASGIApp:
        assert self._gate is not None, "not started"
        return self._gate

    @property
    def _generates(self) -> bool:
        return self._manifest.engine.task == GENERATE

    def _serve_answers(self, app: FastAPI, client: ClusterEngineClient) -> None:
        """Does what only models that generate need."""
        self._responses = app.state.openai_serving_responses
        template = app.state.openai_serving_chat.chat_template or client.renderer.tokenizer.chat_template
        budgets = self._manifest.api.thinking_budgets
        client.set_thinking_budgets(ThinkingBudgets.of(budgets, client.vllm_config, template))

    def _refusals(self) -> Iterator[Conflict]:
        parsers = parsers_here()
        if parsers is not None:
            yield from unknown_parsers(self._manifest.engine, parsers)
        yield from too_long(self._manifest.engine, read_config(self._options.model.directory))

    def _add_own(self, app: FastAPI) -> None:
        add_admin(app, self._reload)
        add_explain(app, self._finder)
        add_adapters(app, self._adapter_manager, self._adapters)
        add_batches(app, self._batches)
        if self._generates and _serves_original_routes(self._manifest):
            baseline = BaselineTurn(lambda: self._live.limits.request)
            add_original_routes(app, self._manifest.engine, baseline)

    async def _reload(self) -> Reloaded:
        """Errors: as reload_cluster."""
        path = self._options.manifest
        if path is None:
            raise InvalidRequest("this apiserver runs without a manifest file: there is nothing to reload")
        text = await asyncio.to_thread(read_again, path)
        return await reload_cluster(self._options.routers, text, str(path))

    def _apply(self, live: LiveSettings) -> None:
        """Applies settings of a reload. This may happen before the start is over."""
        if live.log_level != self._live.log_level:
            set_log_level(live.log_level)
        self._live = live
        self._records.set_limit(live.explain_requests)
        if self._client is not None:
            self._client.set_limits(live.limits)
        if self._gate is not None:
            self._gate.keys = live.keys
        if self._cors is not None:
            self._cors.allow(live.cors_origins)

    async def wait(self) -> None:
        """Raises when the apiserver cannot go on. Between start and aclose."""
        assert self._http is not None, "not started"
        async with asyncio.TaskGroup() as group:
            group.create_task(self._http.wait())
            group.create_task(self._router.wait())

    async def aclose(self, drain_seconds: float | None = None) -> None:
        """Begins nothing new, lets requests end for a while, ends the rest with an error, and closes."""
        try:
            await self._stop(self._options.drain_seconds if drain_seconds is None else drain_seconds)
        finally:
            await self._tracer.aclose()

    async def _stop(self, drain_seconds: float) -> None:
        if self._batches is not None:
            await self._batches.aclose()
        if self._gate is not None:
            self._gate.draining.begun = True
        if self._http is not None:
            await self._http.stop_listening()
        if self._client is not None:
            await self._client.drain(drain_seconds, Unavailable(STOPPING))
        if self._http is not None:
            await self._http.aclose()
        if self._responses is not None:
            await self._responses.aclose()
        if self._client is not None:
            self._client.shutdown()
        await self._workers.aclose()
        await self._router.aclose()


def _serves_original_routes(manifest: Manifest) -> bool:
    wanted = manifest.api.original_routes
    return manifest.deployment.mode == "local" if wanted is None else wanted


def _retries(scheduling: Scheduling) -> RetryBudget:
    limits = RetryLimits(scheduling.retry_share, scheduling.retry_burst, scheduling.retry_tenant_share)
    return RetryBudget(limits)


_LOOPBACK = "127.0.0.1"


class ApiserverRole:
    """Life: start (once) -> wait -> aclose (idempotent). metrics_port 0: /metrics on the HTTP port only.
    Made inside a running loop."""

    def __init__(
        self,
        options: ApiserverOptions,
        manifest: Manifest,
        registry: CollectorRegistry,
        *,
        metrics_port: int = 0,
    ) -> None:
        self._apiserver = Apiserver(options, manifest, registry)
        self._metrics = MetricsServer(registry, _LOOPBACK, metrics_port) if metrics_port else None

    async def start(self) -> None:
        """Errors: StartFailed."""
        await self._apiserver.start()
        _quieten_vllm()  # it sets its logging up again on the way
        if self._metrics:
            await self._metrics.start()

    async def wait(self) -> None:
        await self._apiserver.wait()

    async def aclose(self) -> None:
        await self._apiserver.aclose()
        if self._metrics:
            await self._metrics.aclose()


def _quieten_vllm() -> None:
    """vLLM logs a traceback of whatever ends a stream, through a handler of its own or (JSON) that of all."""
    known = KnownFailures("vllm", is_expected)
    for handler in (*logging.getLogger("vllm").handlers, *logging.getLogger().handlers):
        handler.addFilter(known)
