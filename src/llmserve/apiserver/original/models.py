"""The routes by which TorchWeave's clients load, unload and search models."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query
from pydantic import BaseModel, Field

from llmserve.core.errors import InvalidRequest, Unavailable
from llmserve.models import default_cache_dir
from llmserve.models.local import local_models
from llmserve.models.search import search_hub
from llmserve.rpc.model_calls import ModelClient


class TorchWeaveModel(BaseModel):
    """A model as TorchWeave names it. custom_model_id: another word for model_id."""

    model_id: str | None = Field(None, min_length=1)
    custom_model_id: str | None = Field(None, min_length=1)

    @property
    def name(self) -> str:
        """Errors: InvalidRequest."""
        name = self.model_id or self.custom_model_id
        if not name:
            raise InvalidRequest("model_id or custom_model_id is required", field="model_id")
        return name


def add_original_models(
    app: FastAPI, client: ModelClient, limit_seconds: Callable[[], float], device: str
) -> None:
    """device: `engine.device`, which the answers show."""

    @app.post("/models/load", tags=["original projects"])
    async def load(body: TorchWeaveModel) -> dict[str, Any]:
        """Loads a model of the hub, as TorchWeave does. Clients name it by its id."""
        began, name = time.monotonic(), body.name
        await client.load(json.dumps({"source": name, "name": name}), limit_seconds())
        return {
            **_answer(name, "loaded"),
            "load_time": time.monotonic() - began,
            "device": device,
        }

    @app.post("/models/unload", tags=["original projects"])
    async def unload(body: TorchWeaveModel) -> dict[str, Any]:
        """Unloads a model, and answers when no process of it is left."""
        await client.unload(body.name, limit_seconds())
        return _answer(body.name, "unloaded")

    @app.get("/models/search/{text:path}", tags=["original projects"])
    async def search(text: str, limit: Annotated[int, Query(ge=1, le=100)] = 10) -> dict[str, Any]:
        """Looks for models on the hub, if it can be reached, and on the machine of this apiserver."""
        return await asyncio.to_thread(_found, text, limit)


def _found(text: str, limit: int) -> dict[str, Any]:
    """Blocks while the hub answers."""
    here = {one.name for one in local_models(default_cache_dir()) if text.lower() in one.name.lower()}
    message, downloads = "", dict[str, int]()
    try:
        downloads = {one.name: one.downloads for one in search_hub(text, limit)}
    except Unavailable as error:
        message = f"; {error.message}"
    names = [*sorted(here), *(name for name in downloads if name not in here)]
    rows = [{"model_id": name, "downloads": downloads.get(name), "local": name in here} for name in names]
    return {"success": True, "message": f"Models found: {len(rows)}{message}", "data": rows}


def _answer(name: str, what: str) -> dict[str, Any]:
    message = f"Model {name} {what} successfully"
    return {"success": True, "message": message, "model_id": name, "status_code": 200}
