"""`/admin`: for operators. A key marked `admin`, or without any keys a client on this machine."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from llmserve.apiserver.request_scope import current_scope
from llmserve.core.errors import Forbidden
from llmserve.rpc.reload import Reloaded

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
    if not current_scope().admin:
        raise Forbidden("only for admins: a key with `admin: true`, or without any keys a client on loopback")


def as_json(reloaded: Reloaded) -> dict[str, Any]:
    changes = asdict(reloaded.changes)
    return {"live": changes["live"], "needs_restart": changes["restart"], "failed": reloaded.failed}
