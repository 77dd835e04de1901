"""The routes by which admins load, unload and list models: `/admin/v1/models`."""

import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Body, FastAPI

from llmserve.core.errors import InvalidRequest
from llmserve.rpc.model_calls import ModelClient, model_row

MODELS_PATH = "/admin/v1/models"
_Entry = Annotated[dict[str, Any], Body()]


def add_model_manager(app: FastAPI, client: ModelClient, limit_seconds: Callable[[], float]) -> None:
    """limit_seconds: returns the longest time that a request may take."""

    @app.get(MODELS_PATH)
    async def list_loads() -> dict[str, Any]:
        """Returns all models, and how far those are that come or go."""
        return {"models": [model_row(status) for status in await client.list()]}

    @app.post(MODELS_PATH)
    async def load_model(entry: _Entry) -> dict[str, Any]:
        """Loads a model: an entry of `models`, as in the manifest. `swap` names a model whose place it gets.
        Answers when requests may use it; with `wait: false` at once. `pull: true` only fetches and checks it,
        so that a later load of it is short."""
        swap, wait, pull = entry.pop("swap", ""), entry.pop("wait", True), entry.pop("pull", False)
        if not isinstance(swap, str) or not isinstance(wait, bool) or not isinstance(pull, bool):
            raise InvalidRequest("swap has to be the name of a model, wait and pull true or false")
        if pull and swap:  # the router says so, too, but no error of it names a field
            raise InvalidRequest("swap: a pull starts no engines, so it takes nobody's place", field="swap")
        seconds = limit_seconds() if wait else 0.0
        return model_row(await client.load(json.dumps(entry), seconds, swap=swap, pull=pull))

    # Names may contain slashes.
    @app.delete(MODELS_PATH + "/{name:path}")
    async def unload_model(name: str, wait: bool = True) -> dict[str, Any]:
        """Unloads a model. What runs on it goes on. wait: the answer comes when no process of it is left."""
        return model_row(await client.unload(name, limit_seconds() if wait else 0.0))
