"""The routes by which admins manage adapters: `/admin/v1/adapters`, and those of vLLM and SGLang."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from llmserve.apiserver.adapters.manager import AdapterManager, read_source
from llmserve.apiserver.adapters.names import AdapterNames
from llmserve.core.adapters import AdapterTier
from llmserve.core.errors import InvalidRequest
from llmserve.rpc.adapter_calls import adapter_row

_Text = Annotated[str, Field(min_length=1)]
_Near = Literal["device", "dram", "disk"]
ADAPTERS_PATH = "/admin/v1/adapters"


class LoadBody(BaseModel):
    """A load with the fields of vLLM (`load_inplace`) and of SGLang (`pinned`). Fields that would change
    answers and are not available are refused. model: that of the adapter; needed when there are several."""

    lora_name: _Text
    lora_path: _Text
    model: str | None = None
    load_inplace: bool = False
    pinned: bool = False
    is_3d_lora_weight: Literal[False] = False
    added_tokens_config: None = None


class UnloadBody(BaseModel):
    """An unload with the field that vLLM and SGLang have."""

    lora_name: _Text


class AdapterBody(BaseModel):
    """A load. prefetch: every worker has the adapter in this tier, or nearer, from the start. model: that of
    the adapter; needed when there are several."""

    model_config = ConfigDict(extra="forbid")

    name: _Text
    source: _Text
    model: str | None = None
    pin: bool = False
    prefetch: _Near | None = None


class PrefetchBody(BaseModel):
    """tier: every worker is to have the adapter there, or nearer. wait: the answer comes when it is there."""

    model_config = ConfigDict(extra="forbid")

    tier: _Near = "dram"
    wait: bool = True


Managers = Callable[[str | None], AdapterManager]


def add_adapters(app: FastAPI, manager: AdapterManager, names: AdapterNames, managers: Managers) -> None:
    """manager: for calls about an adapter that has a name. managers: returns that of a model, by its name;
    without a name, that of the only one."""
    router = APIRouter()
    _add_known(router, manager, names, managers)
    _add_own(router, manager, managers)
    app.routes.extend(router.routes)  # include_router would make each of them once more


def _add_known(router: APIRouter, manager: AdapterManager, names: AdapterNames, managers: Managers) -> None:
    @router.post("/v1/load_lora_adapter")
    async def load_lora_adapter(body: LoadBody) -> PlainTextResponse:
        """Loads an adapter, as vLLM does: 400 for a name that is loaded, unless `load_inplace` is set."""
        await _load(managers, names, body)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter")
    async def unload_lora_adapter(body: UnloadBody) -> PlainTextResponse:
        """Unloads an adapter, as vLLM does. What runs on it goes on."""
        await manager.unload(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    @router.post("/load_lora_adapter")
    async def load_as_sglang(body: LoadBody) -> JSONResponse:
        """Loads an adapter, as SGLang does."""
        await _load(managers, names, body)
        return _sglang_s(names)

    @router.post("/unload_lora_adapter")
    async def unload_as_sglang(body: UnloadBody) -> JSONResponse:
        """Unloads an adapter, as SGLang does. What runs on it goes on."""
        await manager.unload(body.lora_name)
        return _sglang_s(names)


async def _load(managers: Managers, names: AdapterNames, body: LoadBody) -> None:
    if not body.load_inplace and names.meaning(body.lora_name) is not None:
        text = f"lora_name: {body.lora_name} is loaded already; load_inplace loads it again"
        raise InvalidRequest(text, field="lora_name")
    source = read_source(body.lora_path, "lora_path")
    await managers(body.model).load(body.lora_name, source, pin=body.pinned)


def _sglang_s(names: AdapterNames) -> JSONResponse:
    loaded = {name: request.lora_path for name, request in names.requests.items()}
    return JSONResponse({"success": True, "error_message": None, "loaded_adapters": loaded})


def _add_own(router: APIRouter, manager: AdapterManager, managers: Managers) -> None:
    @router.get(ADAPTERS_PATH)
    async def list_adapters() -> dict[str, Any]:
        """Returns all versions, and in which tier each worker has them."""
        return {"adapters": [adapter_row(status) for status in await manager.list()]}

    @router.post(ADAPTERS_PATH)
    async def load_adapter(body: AdapterBody) -> dict[str, Any]:
        """Gives an adapter a name, and answers when requests may use it. A name that exists moves to it."""
        tier = AdapterTier(body.prefetch) if body.prefetch else None
        source = read_source(body.source, "source")
        loading = managers(body.model).load(body.name, source, pin=body.pin, tier=tier)
        return adapter_row(await loading)

    # Names may contain slashes, so these are looked at before the adapter itself.
    @router.post(ADAPTERS_PATH + "/{name:path}/prefetch")
    async def prefetch_adapter(name: str, body: PrefetchBody = PrefetchBody()) -> dict[str, Any]:  # noqa: B008
        """Brings an adapter nearer to every worker."""
        return adapter_row(await manager.keep(name, tier=AdapterTier(body.tier), wait=body.wait))

    @router.post(ADAPTERS_PATH + "/{name:path}/pin")
    async def pin_adapter(name: str) -> dict[str, Any]:
        """Keeps an adapter in shared memory on every host, however long it is not used."""
        return adapter_row(await manager.keep(name, pin=True))

    @router.delete(ADAPTERS_PATH + "/{name:path}/pin")
    async def unpin_adapter(name: str) -> dict[str, Any]:
        """Undoes pin."""
        return adapter_row(await manager.keep(name, pin=False))

    @router.delete(ADAPTERS_PATH + "/{name:path}")
    async def unload_adapter(name: str, wait: bool = False) -> dict[str, Any]:
        """Takes the name away. What runs on it goes on. wait: the answer comes when no worker has it."""
        return adapter_row(await manager.unload(name, wait=wait))
