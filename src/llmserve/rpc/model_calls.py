"""Asks the router about models that come and go, for operators, and shows its answers."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from llmserve.config.wanted_models import ModelState
from llmserve.core.errors import DeadlineExceeded, NotFound, Unavailable
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import RouterAddresses, ask_leader
from llmserve.rpc.status import error_named

_ASK_SECONDS = 5.0
_LOOK_SECONDS = 0.25

OnStatus = Callable[[router_pb2.ModelStatus], None]


def _ignore(status: router_pb2.ModelStatus) -> None:
    """Nobody watches."""


class ModelClient:
    """All calls are idempotent. Errors: InvalidRequest and NotFound as the router says them, Unavailable when
    no router leads. Those that wait go on while no router leads, until their time is over: DeadlineExceeded.
    on_status: is called with how far it is, several times a second."""

    def __init__(self, routers: RouterAddresses) -> None:
        self._routers = routers

    async def load(
        self,
        entry: str,
        seconds: float,
        *,
        swap: str = "",
        pull: bool = False,
        on_status: OnStatus = _ignore,
    ) -> router_pb2.ModelStatus:
        """Returns when requests may use the model; with `pull` when its files are here and checked. entry:
        JSON, as an entry of `models` in the manifest. swap: name of the model whose place it gets; empty:
        none. seconds 0: returns at once. Errors: also that of the load."""
        request = router_pb2.LoadModelRequest(entry=entry, swap=swap, pull=pull)
        is_done = _is_pulled if pull else _is_loaded
        status: router_pb2.ModelStatus = await ask_leader(
            self._routers, lambda stub: stub.LoadModel(request, timeout=_ASK_SECONDS)
        )
        return await self._until(status, is_done, seconds, on_status) if seconds else status

    async def unload(
        self, name: str, seconds: float, *, on_status: OnStatus = _ignore
    ) -> router_pb2.ModelStatus:
        """Returns when no process of the model is left. seconds 0: returns at once."""
        request = router_pb2.UnloadModelRequest(name=name)
        status: router_pb2.ModelStatus = await ask_leader(
            self._routers, lambda stub: stub.UnloadModel(request, timeout=_ASK_SECONDS)
        )
        if not seconds or status.state != ModelState.DRAINING:
            return status
        with suppress(NotFound):
            await self._until(status, lambda _: False, seconds, on_status)
        return status

    async def list(self) -> list[router_pb2.ModelStatus]:
        """Returns all that are not gone."""
        request = router_pb2.ListModelsRequest()
        answer = await ask_leader(self._routers, lambda stub: stub.ListModels(request, timeout=_ASK_SECONDS))
        return list(answer.models)

    async def _until(
        self,
        status: router_pb2.ModelStatus,
        holds: Callable[[router_pb2.ModelStatus], bool],
        seconds: float,
        on_status: OnStatus,
    ) -> router_pb2.ModelStatus:
        """Errors: NotFound when it is gone."""
        name, number = status.name, status.number
        try:
            async with asyncio.timeout(seconds):
                while not holds(status):
                    on_status(status)
                    await asyncio.sleep(_LOOK_SECONDS)
                    with suppress(Unavailable):
                        found = {one.number: one for one in await self.list()}
                        if number not in found:
                            raise NotFound(f"model {name} was unloaded")
                        status = found[number]
        except TimeoutError:
            raise DeadlineExceeded(f"model {name} is {status.state}: it goes on all the same") from None
        return status


def _is_loaded(status: router_pb2.ModelStatus) -> bool:
    """Errors: that of a load that has failed; NotFound when it is being unloaded."""
    if status.state == ModelState.FAILED:
        raise error_named(status.error, status.message)
    if status.state == ModelState.DRAINING:
        raise NotFound(f"model {status.name} was unloaded before it was ready")
    return bool(status.state == ModelState.READY)


def _is_pulled(status: router_pb2.ModelStatus) -> bool:
    """A load may have gone on from there: engines start when the files are here. Errors: as _is_loaded."""
    return _is_loaded(status) or status.state in (ModelState.FETCHED, ModelState.STARTING)


def model_row(status: router_pb2.ModelStatus) -> dict[str, Any]:
    """Returns a model as `/admin/v1/models` and `llmserve models served --json` show it."""
    return {
        "name": status.name,
        "state": status.state,
        "detail": status.detail or None,
        "error": status.message or None,
        "source": status.source,
        "in_manifest": status.declared,
        "swaps": status.swap or None,
        "requests": status.requests,
    }
