"""The routes that are ours: models, operations, `/admin`, and the record of a request."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from vllm.entrypoints.serve.engine.protocol import ModelCard

from llmserve import __version__
from llmserve.apiserver.explain.records import RecordFinder
from llmserve.apiserver.http.errors import ErrorForm
from llmserve.apiserver.http.scope import current_scope
from llmserve.core.errors import Forbidden, NotFound
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import Reloaded


def add_models(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    @app.get("/v1", include_in_schema=False)
    async def service() -> JSONResponse:
        """Some clients ask this to see whether a server is there."""
        return JSONResponse({"service": "llmserve", "version": __version__, "docs": "/docs"})

    @app.get("/v1/models")
    async def list_models(request: Request) -> JSONResponse:
        """The models, as vLLM lists them; for Anthropic's clients (`anthropic-version`) as their API does."""
        return JSONResponse(_listed(await _cards(request)))

    @app.get("/v1/models/{model_id:path}")
    async def retrieve_model(model_id: str, request: Request) -> JSONResponse:
        """One of the models; its id may contain slashes. 404 when there is none of that id."""
        for card in await _cards(request):
            if card.id == model_id:
                return JSONResponse(_model(card))
        raise NotFound(f"The model `{model_id}` does not exist.")


async def _cards(request: Request) -> list[ModelCard]:
    cards: list[ModelCard] = (await request.app.state.openai_serving_models.show_available_models()).data
    for card in cards:  # vLLM leaves it out for adapters, whose length is that of the model
        card.max_model_len = cards[0].max_model_len
    return cards


def _listed(cards: list[ModelCard]) -> dict[str, Any]:
    models = [_model(card) for card in cards]
    if not _asked_by_anthropic_s():
        return {"object": "list", "data": models}
    return {"data": models, "has_more": False, "first_id": cards[0].id, "last_id": cards[-1].id}


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
        require_admin()
        reloaded = await reload()
        return JSONResponse(as_json(reloaded), 500 if reloaded.failed else 200)


def require_admin() -> None:
    """Errors: Forbidden."""
    if not current_scope().caller.admin:
        raise Forbidden("only for admins: a key with `admin: true`, or without any keys a client on loopback")


def as_json(reloaded: Reloaded) -> dict[str, Any]:
    changes = asdict(reloaded.changes)
    return {"live": changes["live"], "needs_restart": changes["restart"], "failed": reloaded.failed}


def add_explain(app: FastAPI, finder: RecordFinder) -> None:
    @app.get("/v1/requests/{request_id}/explain")
    async def explain(request_id: str) -> Response:
        """The record of a request of the caller's own, or for an admin of anybody's. 404 for any other."""
        caller = current_scope().caller
        tenant = "" if caller.admin else caller.tenant
        question = router_pb2.RecordQuestion(request_id=request_id, tenant=tenant)
        return Response(await finder.find_anywhere(question), media_type="application/json")
