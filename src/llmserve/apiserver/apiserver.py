"""The apiserver: what it is made of, how models come and go, and the order in which it starts and stops."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import torch
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from llmserve.apiserver.adapters.manager import AdapterManager
from llmserve.apiserver.adapters.names import AdapterNames
from llmserve.apiserver.adapters.routes import add_adapters
from llmserve.apiserver.auth.authenticator import Authenticator
from llmserve.apiserver.auth.permissions import public_paths
from llmserve.apiserver.batches.build import build_batches, streamed_paths
from llmserve.apiserver.batches.routes import add_batches
from llmserve.apiserver.batches.service import BatchService
from llmserve.apiserver.console.assets import CONSOLE_PATHS, add_assets
from llmserve.apiserver.console.build import build_console
from llmserve.apiserver.console.manifest import ManifestFile
from llmserve.apiserver.console.routes import add_console
from llmserve.apiserver.engine.client import GENERATE
from llmserve.apiserver.engine.stream_interval import adapt_interval
from llmserve.apiserver.explain.records import RecordFinder, RequestRecords
from llmserve.apiserver.grammars.process import SharedCompiler
from llmserve.apiserver.grammars.server import ServerProcess
from llmserve.apiserver.http.body import BodyLimits
from llmserve.apiserver.http.gate import Gate, Paths
from llmserve.apiserver.http.headers import Cors
from llmserve.apiserver.http.listener.certificate import HttpCertificate
from llmserve.apiserver.http.listener.server import HttpServer
from llmserve.apiserver.http.response import STOPPING
from llmserve.apiserver.http.routes import add_admin, add_explain, add_models, add_operations
from llmserve.apiserver.http.spans import HttpSpans
from llmserve.apiserver.limits.fetching import MediaConnection
from llmserve.apiserver.links.router import RouterLink
from llmserve.apiserver.links.worker import WorkerLinks
from llmserve.apiserver.live_settings import CommandHandler, LiveSettings
from llmserve.apiserver.models.choice import ModelChoice
from llmserve.apiserver.models.door import ModelDoor
from llmserve.apiserver.models.doors import ModelDoors
from llmserve.apiserver.models.following import ModelFollowing
from llmserve.apiserver.models.routes import add_model_manager
from llmserve.apiserver.options import ApiserverOptions, ModelDirectory
from llmserve.apiserver.original_routes import (
    BaselineTurn,
    add_original_models,
    add_original_routes,
    serves_original_routes,
)
from llmserve.apiserver.request.context import RunContext
from llmserve.apiserver.request.rules import KvIdentity, RetryBudget, RetryLimits
from llmserve.apiserver.responses.build import build_store
from llmserve.config.schema import Manifest
from llmserve.core.clock import SystemClock
from llmserve.core.errors import Unavailable
from llmserve.core.ids import ApiserverId
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.apiserver import ApiserverMetrics, ModelMetrics
from llmserve.rpc.adapter_calls import AdapterClient
from llmserve.rpc.model_calls import ModelClient
from llmserve.rpc.role import beside, set_log_level
from llmserve.tracing.base import Tracer
from llmserve.tracing.open import open_tracer


class Apiserver:
    """Life: start (once) -> aclose (idempotent, also after a failed start). What is of one model is in its
    ModelDoor; what all models share is here."""

    def __init__(
        self,
        options: ApiserverOptions,
        manifest: Manifest,
        registry: CollectorRegistry,
        forked: ServerProcess | None = None,
    ) -> None:
        """forked: as for SharedCompiler."""
        self._options, self._manifest, self._registry = options, manifest, registry
        self._live = LiveSettings.of(manifest)
        self._auth = Authenticator.of(manifest, self._live.keys, options.directory)
        self._records = RequestRecords(self._live.explain_requests)
        self._tracer = _open_tracer(options, manifest, registry)
        self._finder = RecordFinder(self._records, options.name, options.routers)
        self._metrics = ApiserverMetrics(registry)
        credentials = options.routers.credentials
        credentials.show_expiry(registry)
        self._workers, self._adapters = WorkerLinks(self._metrics, credentials), AdapterNames()
        commands = CommandHandler(
            self._apply, self._finder.find_here, self._finder.rows_here, options.manifest_text
        )
        self._manifest_file = ManifestFile(options.manifest, options.routers, lambda: commands.manifest_text)
        self._router = self._router_link(commands)
        self.models = ModelDoors()
        self._gate = self._make_gate()
        self._cors = Cors(self._gate, self._live.cors_origins)
        self._retries = RetryBudget(RetryLimits.of(manifest.scheduling))
        self._metrics.retry_budget.set_function(lambda: self._retries.left)
        self._batches = self._make_batches()
        self._store = build_store(manifest, os.environ, SystemClock())
        self._media = MediaConnection(frozenset(manifest.security.allowed_media_hosts))
        self._compiler = SharedCompiler(manifest.security.limits, forked)
        self._baseline = BaselineTurn(self._limit)
        self._adding, self._owner = asyncio.Lock(), TaskOwner("apiserver")
        self._following = ModelFollowing(
            manifest, self._router, self.add_model, self.drop_model, options.model_directories
        )
        self._console = build_console(options, manifest, self._finder, self._manifest_file)
        self._http: HttpServer | None = None

    def _router_link(self, commands: CommandHandler) -> RouterLink:
        return RouterLink(
            self._options.routers,
            ApiserverId(self._options.name),
            self._metrics,
            on_members=self._workers.retain,
            patience_seconds=self._manifest.scheduling.router_patience_seconds,
            answer=commands.answer,
            on_adapters=self._adapters.update,
        )

    def _make_batches(self) -> BatchService | None:
        most_bytes = self._manifest.security.limits.body_kib << 10
        return build_batches(
            self._manifest.batches, self._options.run_dir, self._metrics.batches, self._gate, most_bytes
        )

    async def start(self) -> int:
        """Serves; returns the HTTP port. Requests are refused with 503 until router and workers are there.
        Errors: StartFailed; ManifestError when another try would end alike."""
        torch.set_num_threads(1)
        self._media.register()
        self._router.start()
        for files, model in zip(self._options.models, self._manifest.served, strict=True):
            await self.add_model(files, self._manifest.alone(model))
        self._owner.spawn("models", self._following.run(), fatal=True)
        certificate = _certificate(self._options, self._manifest)
        limits = self._manifest.security.limits
        self._http = HttpServer(self._cors, self._options.http, self._options.share, limits, certificate)
        if self._manifest.api.stream_interval is None:
            self._owner.spawn("stream-interval", adapt_interval(self._set_stream_interval))
        await self._auth.start(self._owner)
        port = await self._http.start()
        if self._batches is not None:
            self._batches.start()
        return port

    def _make_gate(self) -> Gate:
        """Returns what a request passes before the application of its model, which is chosen behind it."""
        manifest, limits = self._manifest, self._manifest.security.limits
        public = CONSOLE_PATHS | public_paths(manifest)
        paths = Paths.of(manifest.api.root_path, public, streamed_paths(manifest.batches))
        bodies = BodyLimits(limits.body_kib << 10, limits.body_seconds)
        choice, spans = ModelChoice(self.models, manifest.security), HttpSpans(self._tracer)
        return Gate(choice, self._auth, bodies, self._records, spans, paths)

    # -- models

    async def add_model(self, files: ModelDirectory, manifest: Manifest) -> None:
        """Serves one more model from the moment in which this returns. manifest: that of this model alone.
        Errors: InvalidRequest when one of its name is there; as start."""
        async with self._adding:
            self.models.check_free(files.name)
            context, manager = self._context_of(files.name), self._manager_of(files.name)
            door = ModelDoor(files, manifest, context, self._adapters, manager, self._compiler)
            try:
                add_own, ahead = partial(self._add_own, manifest), self._options.compiles_ahead
                await door.open(add_own, self._store, compiles_ahead=ahead)
                door.set_limits(self._live.limits)
            except BaseException:
                await door.drain(0, Unavailable(STOPPING))
                await door.aclose()
                self._metrics.requests.forget(files.name)
                raise
            self.models.add(door)

    async def drop_model(self, name: str, drain_seconds: float) -> None:
        """Ends a model: new requests do not know it, and those that run have this long to end. Errors:
        NotFound; InvalidRequest for the only one."""
        await self.models.drop(name, drain_seconds)
        async with self._adding:
            if self.models.get(name) is None:  # another one may have got its name meanwhile
                self._metrics.requests.forget(name)

    def _set_stream_interval(self, tokens: int) -> None:
        for door in self.models:
            door.client.set_stream_interval(tokens)

    def _context_of(self, model: str) -> RunContext:
        return RunContext(
            router=self._router,
            workers=self._workers,
            identity=KvIdentity(tenants_share=self._manifest.security.kv_sharing == "cluster"),
            metrics=ModelMetrics(self._metrics.requests, model),
            model=model,
            limits=self._live.limits,
            retries=self._retries,
            tracer=self._tracer,
        )

    def _manager_of(self, model: str) -> AdapterManager:
        """model: empty for calls by a name, which is that of one adapter whatever its model."""
        client = AdapterClient(self._options.routers, model)
        return AdapterManager(client, self._adapters, self._limit)

    def _manager_for(self, named: str | None) -> AdapterManager:
        """named: the model that an admin names. Errors: as ModelDoors.managed."""
        return self.models.managed(named).manager

    async def _missing(self) -> str:
        """Returns which model cannot be served now, and why; empty when all can. One that is still being
        loaded does not count."""
        doors = [door for door in self.models if self._following.is_expected(door.name)]
        for door in doors:
            if reason := await door.missing():
                return reason if len(doors) == 1 else f"model {door.name}: {reason}"
        return ""

    def _add_own(self, manifest: Manifest, app: FastAPI) -> None:
        """manifest: that of the application's model alone."""
        add_operations(app, self.models, self._missing, self._registry)
        add_models(app, self.models)
        add_admin(app, self._manifest_file.reload)
        add_explain(app, self._finder)
        add_adapters(app, self._manager_of(""), self._adapters, self._manager_for)
        add_assets(app, self._manifest.api.root_path or "", self._manifest.security.oidc)
        add_console(app, self._console)
        add_batches(app, self._batches, self.models.serves)
        client = ModelClient(self._options.routers)
        add_model_manager(app, client, self._limit)
        if manifest.engine.task == GENERATE and serves_original_routes(manifest):
            add_original_routes(app, manifest.engine, self._baseline, self.models)
            add_original_models(app, client, self._limit, manifest.engine.device)

    def _limit(self) -> float:
        """Returns the longest time that a request may take, in seconds."""
        return self._live.limits.request

    def _apply(self, live: LiveSettings) -> None:
        """Applies settings of a reload. This may happen before the start is over."""
        if live.log_level != self._live.log_level:
            set_log_level(live.log_level)
        self._live = live
        self._records.set_limit(live.explain_requests)
        for door in self.models:
            door.set_limits(live.limits)
        self._auth.manifest = live.keys
        self._cors.allow(live.cors_origins)

    async def wait(self) -> None:
        """Raises when the apiserver cannot go on. Between start and aclose."""
        assert self._http is not None, "not started"
        async with asyncio.TaskGroup() as group:
            group.create_task(self._http.wait())
            group.create_task(self._router.wait())
            group.create_task(self._failed())

    async def _failed(self) -> None:
        """Raises what one of the tasks failed on without which the apiserver cannot go on."""
        raise await self._owner.failed

    async def aclose(self, drain_seconds: float | None = None) -> None:
        """Begins nothing new, lets requests end for a while, ends the rest with an error, and closes."""
        try:
            await self._stop(self._options.drain_seconds if drain_seconds is None else drain_seconds)
        finally:
            await self._tracer.aclose()

    async def _stop(self, drain_seconds: float) -> None:
        """A step that raises keeps none of the later ones from running."""
        self._gate.draining.begun = True
        http, store = self._http, self._store
        steps: list[Callable[[], Awaitable[object]]] = [
            self._console.aclose,
            *([http.stop_listening] if http is not None else []),
            partial(self._drain, drain_seconds),
            *([http.aclose] if http is not None else []),
            *(door.aclose for door in self.models),
            *(part.aclose for part in (self._media, self._owner, self._auth, self._compiler)),
            *([store.aclose] if store is not None else []),
            self._workers.aclose,
            self._router.aclose,
        ]
        async with AsyncExitStack() as stack:
            for step in reversed(steps):  # the stack runs the last one first
                stack.push_async_callback(step)

    async def _drain(self, seconds: float) -> None:
        """Lets requests end. Batches close meanwhile: that takes long when their bucket is away."""
        ends = [door.drain(seconds, Unavailable(STOPPING)) for door in self.models]
        if self._batches is not None:
            ends.append(self._batches.aclose())
        for failure in await asyncio.gather(*ends, return_exceptions=True):
            if failure is not None:
                raise failure


def _certificate(options: ApiserverOptions, manifest: Manifest) -> HttpCertificate | None:
    """Errors: StartFailed."""
    tls = manifest.security.tls
    if tls is None or options.manifest is None:
        return None
    return HttpCertificate(beside(options.manifest, tls.certificate), beside(options.manifest, tls.key))


def _open_tracer(options: ApiserverOptions, manifest: Manifest, registry: CollectorRegistry) -> Tracer:
    return open_tracer(
        manifest.observability.tracing,
        role="apiserver",
        process=options.name,
        cluster=manifest.metadata.name,
        registry=registry,
    )
