"""The routes that are ours: models, operations, `/admin`, and the record of a request."""

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from vllm.entrypoints.serve.engine.protocol import ModelCard

from llmserve import __version__
from llmserve.apiserver.explain.chrome_trace import chrome_trace
from llmserve.apiserver.explain.records import RecordFinder
from llmserve.apiserver.http.errors import ErrorForm
from llmserve.apiserver.http.scope import current_scope
from llmserve.apiserver.models.doors import ModelDoors
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import Reloaded

# A comment on /metrics, where users of vLLM look for its names.
_WHERE_VLLM_IS = (
    b"# vllm:* is counted by the workers: on the page of all processes (observability.port, 9400 if not\n"
    b"# set), on Kubernetes on port 9400 of each worker's pod.\n"
)


def add_operations(
    app: FastAPI, doors: ModelDoors, missing: Callable[[], Awaitable[str]], registry: CollectorRegistry
) -> None:
    """missing: returns why requests cannot be served now; empty when they can."""

    @app.get("/health")
    @app.get("/ping")
    @app.post("/ping")
    async def health() -> Response:
        """200 when requests can be served; 503 and the reason when they cannot."""
        if reason := await missing():
            body = {"status": "unavailable", "reason": reason}
            return JSONResponse(body, 503, headers={"Retry-After": "1"})
        return JSONResponse({"status": "ok"})

    @app.get("/live")
    async def live() -> Response:
        """200 as long as this process answers, whatever the rest of the cluster does."""
        return JSONResponse({"status": "ok"})

    @app.get("/load")
    async def load() -> Response:
        """Number of sequences of this process between their admission and their last token."""
        return JSONResponse({"server_load": sum(door.sequences for door in doors)})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(_WHERE_VLLM_IS + generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def add_models(app: FastAPI, doors: ModelDoors) -> None:
    @app.get("/", include_in_schema=False)
    @app.get("/v1", include_in_schema=False)
    async def service() -> JSONResponse:
        """Some clients ask this to see whether a server is there."""
        return JSONResponse({"service": "llmserve", "version": __version__, "docs": "/docs"})

    @app.get("/v1/models")
    async def list_models() -> JSONResponse:
        """The models, as vLLM lists them; for Anthropic's clients (`anthropic-version`) as their API does."""
        return JSONResponse(_listed(await doors.cards()))

    @app.get("/v1/models/{model_id:path}")
    async def retrieve_model(model_id: str) -> JSONResponse:
        """One of the models; its id may contain slashes. 404 when there is none of that id."""
        for card in await doors.cards():
            if card.id == model_id:
                return JSONResponse(_model(card))
        raise doors.unknown(model_id)


def _listed(cards: list[ModelCard]) -> dict[str, Any]:
    models = [_model(card) for card in cards]
    if not _asked_by_anthropic_s():
        return {"object": "list", "data": models}
    ids = [card.id for card in cards] or [None]
    return {"data": models, "has_more": False, "first_id": ids[0], "last_id": ids[-1]}


def _model(card: ModelCard) -> dict[str, Any]:
    if not _asked_by_anthropic_s():
        shown: dict[str, Any] = card.model_dump()
        return shown
    return {
        "type": "model",
        "id": card.id,
        "display_name": card.id,
        "created_at": datetime.fromtimestamp(card.created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": card.max_model_len,
        "max_tokens": card.max_model_len,
    }


def _asked_by_anthropic_s() -> bool:
    return current_scope().form is ErrorForm.ANTHROPIC


RELOAD_PATH = "/admin/reload"


def add_admin(app: FastAPI, reload: Callable[[], Awaitable[Reloaded]]) -> None:
    @app.post(RELOAD_PATH)
    async def reload_manifest() -> Response:
        """Reads the manifest anew and brings it to the cluster. 400 names path and line of what is wrong."""
        reloaded = await reload()
        return JSONResponse(reloaded.as_json(), 500 if reloaded.failed else 200)


def add_explain(app: FastAPI, finder: RecordFinder) -> None:
    async def found(request_id: str) -> bytes:
        caller = current_scope().caller
        tenant = "" if caller.admin else caller.tenant
        return await finder.find_anywhere(router_pb2.RecordQuestion(request_id=request_id, tenant=tenant))

    @app.get("/v1/requests/{request_id}/explain")
    async def explain(request_id: str) -> Response:
        """The record of a request of the caller's own, or for an admin of anybody's. 404 for any other."""
        return Response(await found(request_id), media_type="application/json")

    @app.get("/v1/requests/{request_id}/trace")
    async def trace(request_id: str) -> Response:
        """The same as a trace in Chrome's JSON format, which Perfetto opens."""
        named = {"content-disposition": "attachment; filename=trace.json"}
        return JSONResponse(chrome_trace(json.loads(await found(request_id))), headers=named)
