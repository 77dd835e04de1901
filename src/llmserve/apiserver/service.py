"""The apiserver as one object: what is made of what, in which order it starts and stops."""

import asyncio
import logging

import torch
from prometheus_client import CollectorRegistry

from llmserve.apiserver.app import openai_app, serving_args, vllm_config
from llmserve.apiserver.auth import load_keys
from llmserve.apiserver.cluster_client import ClusterEngineClient
from llmserve.apiserver.gate import Gate
from llmserve.apiserver.handover_mode import HandoverRule
from llmserve.apiserver.health import Readiness
from llmserve.apiserver.http_server import HttpServer
from llmserve.apiserver.identity import KvIdentity
from llmserve.apiserver.options import ApiserverOptions
from llmserve.apiserver.request_run import RunContext
from llmserve.apiserver.router_link import RouterLink
from llmserve.apiserver.worker_links import WorkerLinks
from llmserve.config.schema import Manifest
from llmserve.core.errors import StartFailed
from llmserve.core.ids import ApiserverId
from llmserve.metrics.apiserver import ApiserverMetrics

_log = logging.getLogger(__name__)

_DRAIN_SECONDS = 5.0


class Apiserver:
    """Life: start (once) -> aclose (idempotent, also after a failed start)."""

    def __init__(self, options: ApiserverOptions, manifest: Manifest, registry: CollectorRegistry) -> None:
        self._options, self._manifest, self._registry = options, manifest, registry
        self._keys = load_keys(manifest.security.api_keys)
        metrics = ApiserverMetrics(registry)
        self._workers = WorkerLinks(metrics)
        self._router = RouterLink(
            options.routers, ApiserverId(options.name), metrics, on_members=self._workers.retain
        )
        self._context = RunContext(
            router=self._router,
            handover=HandoverRule(manifest.transfer.mode, manifest.transfer.push_min_tokens),
            workers=self._workers,
            identity=KvIdentity(tenants_share=manifest.security.kv_sharing == "cluster"),
            metrics=metrics,
            model=options.model.name,
            timeout_seconds=manifest.scheduling.request_timeout_seconds,
        )
        self._client: ClusterEngineClient | None = None
        self._http: HttpServer | None = None

    async def start(self) -> int:
        """Serves; returns the HTTP port. Requests are refused with 503 until router and workers are there.
        Errors: StartFailed."""
        torch.set_num_threads(1)
        self._router.start()
        readiness = Readiness(self._router, self._manifest.deployment.disaggregated)
        try:
            args = serving_args(self._options.model, self._manifest.engine)
            # In a thread: it takes seconds, in which the session with the router must be served.
            config = await asyncio.to_thread(vllm_config, args)
            self._client = ClusterEngineClient(config, self._context, readiness)
            app = await openai_app(self._client, args, readiness, self._registry)
        except Exception as error:  # vLLM's, transformers' and pydantic's have no common root
            raise StartFailed(f"vLLM's API layer cannot serve {self._options.model}: {error}") from error
        self._http = HttpServer(Gate(app, self._keys, self._options.max_body_bytes), self._options.http)
        return await self._http.start()

    async def wait(self) -> None:
        """Raises when the apiserver cannot go on. Between start and aclose."""
        assert self._http is not None, "not started"
        async with asyncio.TaskGroup() as group:
            group.create_task(self._http.wait())
            group.create_task(self._router.wait())

    async def aclose(self, drain_seconds: float = _DRAIN_SECONDS) -> None:
        """Stops listening, lets requests end for a moment, cancels the rest, gives back, closes."""
        if self._http is not None:
            await self._http.stop_listening()
        if self._client is not None:
            await self._client.drain(drain_seconds)
        if self._http is not None:
            await self._http.aclose()
        if self._client is not None:
            self._client.shutdown()
        await self._workers.aclose()
        await self._router.aclose()
