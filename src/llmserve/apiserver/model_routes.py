"""`/v1/models` and `/v1/models/{id}`, in the shape that the asking client knows, and `/v1` itself."""

from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from vllm.entrypoints.serve.engine.protocol import ModelCard

from llmserve import __version__
from llmserve.apiserver.errors import ErrorForm
from llmserve.apiserver.request_scope import current_scope
from llmserve.core.errors import NotFound


def add_models(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    @app.get("/v1", include_in_schema=False)
    async def service() -> JSONResponse:
        """What some clients ask to see whether anybody is there."""
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
