"""One model in an apiserver: vLLM's application for it, and all else that is of this model alone."""

import asyncio
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.config import VllmConfig
from vllm.entrypoints.serve.engine.protocol import ModelCard

from llmserve.apiserver.adapters.choice import AdapterChoice
from llmserve.apiserver.adapters.manager import AdapterManager
from llmserve.apiserver.adapters.names import AdapterNames, ModelAdapters
from llmserve.apiserver.engine.client import GENERATE, ClusterEngineClient
from llmserve.apiserver.engine.thinking import ThinkingBudgets
from llmserve.apiserver.engine.validation import fitting_renderer
from llmserve.apiserver.grammars.process import SharedCompiler
from llmserve.apiserver.http.app import openai_app, serving_args, vllm_config
from llmserve.apiserver.http.health import Readiness, api_failure
from llmserve.apiserver.options import ModelDirectory
from llmserve.apiserver.request.context import RunContext
from llmserve.apiserver.request.rules import StageLimits
from llmserve.apiserver.responses.serving import ResponsesHandler
from llmserve.apiserver.responses.store import ResponseStore
from llmserve.config.conflict import Conflict, refuse
from llmserve.config.refusals import too_long, unknown_parsers
from llmserve.config.schema import Manifest
from llmserve.config.speculation import speculation_of
from llmserve.core.errors import LLMServeError, StartFailed
from llmserve.core.ids import TenantId
from llmserve.engines.vllm.failures import Cause
from llmserve.engines.vllm.options import option_refusals
from llmserve.engines.vllm.sources import parsers_here
from llmserve.models.directory import read_config


class ModelDoor:
    """Life: open (once) -> serve … -> drain -> aclose (both idempotent, also after a failed open)."""

    def __init__(
        self,
        files: ModelDirectory,
        manifest: Manifest,
        context: RunContext,
        adapters: AdapterNames,
        manager: AdapterManager,
        compiler: SharedCompiler,
    ) -> None:
        """manifest: that of this model alone (`Manifest.for_model`). adapters, compiler: those of all models.
        manager: loads adapters of this model."""
        self.name, self.manager = files.name, manager
        self._files, self._manifest, self._context = files, manifest, context
        self._all_adapters, self._compiler = adapters, compiler
        self.adapters = ModelAdapters(adapters, files.name)
        self.adapter_choice = AdapterChoice(self.adapters, manager, files.name)
        needs_pairs = manifest.scheduling.disaggregate == "always"
        self._readiness = Readiness(context.router, files.name, needs_pairs=needs_pairs)
        self._tenants = frozenset(map(TenantId, manifest.model.tenants))
        self._client: ClusterEngineClient | None = None
        self._app: FastAPI | None = None
        self._responses: ResponsesHandler | None = None
        self._requests, self._idle = 0, asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"<ModelDoor {self.name} requests={self._requests} sequences={self.sequences}>"

    @property
    def sequences(self) -> int:
        """Number of sequences between their admission and their last token."""
        return 0 if self._client is None else len(self._client)

    async def open(
        self, add_own: Callable[[FastAPI], None], store: ResponseStore | None, *, compiles_ahead: bool
    ) -> None:
        """Makes vLLM's application. add_own: adds the routes that are not vLLM's. store: of answers of
        /v1/responses. Errors: StartFailed; ManifestError when another try would end alike."""
        task = self._manifest.engine.task
        # In threads: they take seconds, in which streams and the session with the router are served.
        await asyncio.to_thread(lambda: refuse(self._refusals()))
        try:
            args, config, renderer = await asyncio.to_thread(self._read)
            self._client = ClusterEngineClient(
                config,
                renderer,
                self._context,
                self._readiness,
                self._all_adapters,
                self._compiler,
                task,
            )
            self._app = await openai_app(self._client, args, add_own, store, self.adapters)
            if task == GENERATE:
                self._serve_answers(self._app.state)
        except Exception as error:  # vLLM's, transformers' and pydantic's have no common root
            raise Cause.of(error).as_error() from error
        if failure := await api_failure(self._app):
            raise StartFailed(failure)
        if compiles_ahead and task == GENERATE:
            await self._client.start_compiler()

    def _read(self) -> tuple[Namespace, VllmConfig, Any]:
        """Returns vLLM's arguments, its configuration, and its renderer, with the tokenizer."""
        engine, speculates = self._manifest.engine, speculation_of(self._manifest) is not None
        hosts = self._manifest.security.allowed_media_hosts
        args = serving_args(self._files, engine, self._manifest.api, speculates=speculates, media_hosts=hosts)
        config = vllm_config(args)
        return args, config, fitting_renderer(config)

    def _serve_answers(self, state: State) -> None:
        """Does what only models that generate need."""
        self._responses, client = state.openai_serving_responses, self.client
        template = state.openai_serving_chat.chat_template
        template = template or getattr(client.renderer.tokenizer, "chat_template", None)  # Mistral's has none
        budgets = self._manifest.api.thinking_budgets
        client.set_thinking_budgets(ThinkingBudgets.of(budgets, client.vllm_config, template))

    def _refusals(self) -> Iterator[Conflict]:
        parsers = parsers_here()
        if parsers is not None:
            yield from unknown_parsers(self._manifest.engine, parsers)
        yield from option_refusals(self._manifest.engine)
        yield from too_long(self._manifest.engine, read_config(self._files.directory))

    @property
    def app(self) -> ASGIApp:
        assert self._app is not None, "not open"
        return self._app

    @property
    def paths(self) -> frozenset[str]:
        """Those of its routes."""
        assert self._app is not None, "not open"
        return frozenset(getattr(route, "path", "") for route in self._app.routes)

    @property
    def client(self) -> ClusterEngineClient:
        assert self._client is not None, "not open"
        return self._client

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request."""
        self._requests += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    def admits(self, tenant: TenantId) -> bool:
        """Returns whether a tenant may use the model. Others do not see it."""
        return not self._tenants or tenant in self._tenants

    @property
    def generates(self) -> bool:
        """Whether the model answers with tokens, also at /v1/responses and the routes of the originals."""
        return self._responses is not None

    def makes_response(self, response_id: str) -> bool:
        """Returns whether the response of this id, of the caller's tenant, is made here, or its stream can be
        followed here."""
        return self._responses is not None and self._responses.knows(response_id)

    async def cards(self) -> list[ModelCard]:
        """Returns the model itself, and those of its adapters that the caller may use, as vLLM lists them."""
        assert self._app is not None, "not open"
        models = await self._app.state.openai_serving_models.show_available_models()
        cards: list[ModelCard] = models.data
        for card in cards:  # vLLM leaves it out for adapters, whose length is that of the model
            card.max_model_len = cards[0].max_model_len
        return cards

    async def missing(self) -> str:
        """Returns why requests cannot be served now; empty when they can."""
        return self._readiness.missing() or await api_failure(self.app)

    def set_limits(self, limits: StageLimits) -> None:
        """Sets the deadlines of requests that begin from now on."""
        self.client.set_limits(limits)

    async def drain(self, timeout_seconds: float, why: LLMServeError) -> None:
        """Waits for the HTTP requests, of which some may have no sequence yet, and for sequences in the
        background. Then ends those that are left with `why`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_seconds
        await self._until_idle(timeout_seconds)
        if self._client is not None:
            await self._client.drain(max(0.0, end - loop.time()), why)

    async def _until_idle(self, timeout_seconds: float) -> None:
        """Returns when no HTTP request runs here, or after this time."""
        self._idle.clear() if self._requests else self._idle.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return

    async def aclose(self) -> None:
        if self._responses is not None:
            await self._responses.aclose()
        if self._client is not None:
            self._client.shutdown()
