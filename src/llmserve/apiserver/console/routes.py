"""The routes of the console: who asks, the cluster's status, and orders to workers (docs/console.md)."""

import asyncio
from collections.abc import Iterable
from typing import Annotated, Any, get_type_hints

from fastapi import APIRouter, FastAPI, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, create_model

from llmserve import __version__
from llmserve.apiserver.auth.caller import AccessScope
from llmserve.apiserver.console.bench import BenchBody, BenchRuns
from llmserve.apiserver.console.drain import drain, take_back
from llmserve.apiserver.console.events import StatusEvents, encode, encoded, seen_by
from llmserve.apiserver.console.look import ClusterLook
from llmserve.apiserver.console.manifest import ManifestFile
from llmserve.apiserver.console.pins import pins, unpin
from llmserve.apiserver.console.sampler import Sampler
from llmserve.apiserver.explain.records import RecordFinder, after_text, parse_after
from llmserve.apiserver.http.scope import current_scope
from llmserve.overview.parts import OF_KV, OF_TENANTS, kv_part, tenants_part
from llmserve.overview.views import Snapshot
from llmserve.rpc.leader import RouterAddresses

_ROOT = "/admin/v1"
_Limit = Annotated[int, Query(ge=1, le=5000)]
_After = Annotated[str, Query(max_length=4096)]
_STREAM = "text/event-stream"


class DrainBody(BaseModel):
    """timeout_seconds: for what runs to end; 0: as the manifest says."""

    model_config = ConfigDict(extra="forbid")

    timeout_seconds: Annotated[float, Field(ge=0, le=86_400)] = 0.0


class ConsoleData:
    """What the routes of all models share. Made inside a running loop. Life: aclose (idempotent)."""

    def __init__(
        self,
        look: ClusterLook,
        routers: RouterAddresses,
        finder: RecordFinder,
        manifest: ManifestFile,
        bench: BenchRuns,
    ) -> None:
        self.look, self.routers, self.finder = look, routers, finder
        self.manifest, self.bench = manifest, bench
        self._sampler = Sampler(look.again)
        self.events = StatusEvents(self._sampler)

    async def aclose(self) -> None:
        await self._sampler.aclose()
        await self.bench.aclose()
        await self.look.aclose()


def add_console(app: FastAPI, data: ConsoleData) -> None:
    router = APIRouter(prefix=_ROOT)
    _add_status(router, data)
    _add_pins(router, data.look)
    _add_requests(router, data)
    _add_manifest(router, data)
    _add_bench(router, data.bench)
    _add_orders(router, data)
    app.routes.extend(router.routes)  # include_router would make each of them once more


def _described(name: str, names: Iterable[str], **more: Any) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of an answer with these fields of a snapshot."""
    kinds = get_type_hints(Snapshot)
    fields: dict[str, Any] = {field: (kinds[field], ...) for field in names}
    return {200: {"model": create_model(name, **more, **fields)}}


# Made once, and not for each application.
_STATUS = _described("Status", Snapshot.__dataclass_fields__, healthy=(bool, ...))
_TENANTS, _KV = _described("StatusOfTenants", OF_TENANTS), _described("StatusOfKv", OF_KV)


def _add_status(router: APIRouter, data: ConsoleData) -> None:
    @router.get("/caller")
    async def caller() -> dict[str, Any]:
        """Who asks: the tenant, and what the key allows. `keys`: whether this cluster asks for a key."""
        asks = current_scope().caller
        return {
            "tenant": asks.tenant,
            "scopes": [scope for scope in AccessScope if scope in asks.scopes],
            "keys": bool(asks.key_id),
            "version": __version__,
        }

    @router.get("/status", responses=_STATUS)
    async def status() -> Response:
        """The cluster as `llmserve status --json` shows it. Without the scope admin: no other tenant, and not
        where processes run."""
        now = seen_by(current_scope().caller, await data.look.now())
        return Response(encoded(now), media_type="application/json")

    @router.get("/tenants", responses=_TENANTS)
    async def tenants() -> Response:
        """The part of the status that is about tenants: shares, queues, budgets. Without the scope admin: no
        other tenant."""
        return _json(tenants_part(seen_by(current_scope().caller, await data.look.now())))

    @router.get("/kv", responses=_KV)
    async def kv() -> Response:
        """The part of the status that is about KV: blocks, leases, tiers, and which beginnings of prompts
        were found cached most often in the last minutes; without the scope admin, those of the own tenant."""
        return _json(kv_part(seen_by(current_scope().caller, await data.look.now())))

    @router.get("/events")
    async def events() -> StreamingResponse:
        """Server-sent events: `history` with points of the latest minutes, then `status` twice a second, as
        /admin/v1/status, but with only those ways between workers that KV went. They end when the key is
        revoked, or the key or token expires."""
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        scope = current_scope()
        events = data.events.of(scope.caller, scope.is_allowed)
        return StreamingResponse(events, media_type=_STREAM, headers=headers)


def _add_pins(router: APIRouter, look: ClusterLook) -> None:
    @router.get("/kv/pins")
    async def pinned() -> dict[str, Any]:
        """The blocks that operators have pinned (`llmserve kv pin`), used last first: 200 at most, and how
        many there are. By hash: no text is known of them."""
        return await pins(look)

    @router.delete("/kv/pins/{block_hash}")
    async def unpin_block(block_hash: str) -> dict[str, Any]:
        """Ends the pin of one block, as `llmserve kv unpin` does."""
        return await unpin(look, block_hash)


def _json(shape: dict[str, Any]) -> Response:
    return Response(encode(shape), media_type="application/json")


def _add_requests(router: APIRouter, data: ConsoleData) -> None:
    @router.get("/requests")
    async def requests(after: _After = "", limit: _Limit = 500) -> dict[str, Any]:
        """The latest requests of all apiservers, the latest first: those that run, and those that ended since
        the answer whose `after` is given. `limit`: of this apiserver; others give 500 at most. Without the
        scope admin: those of the own tenant."""
        caller = current_scope().caller
        tenant = "" if caller.admin else caller.tenant
        found = await data.finder.rows_anywhere(tenant, parse_after(after), limit)
        return found | {"after": after_text(found["after"])}


def _add_manifest(router: APIRouter, data: ConsoleData) -> None:
    @router.get("/manifest")
    async def manifest() -> dict[str, Any]:
        """The manifest in force and where the file differs from it now, without secrets; and what a reload
        (`POST /admin/reload`) would change, or why it could not."""
        return await data.manifest.view()


def _add_bench(router: APIRouter, bench: BenchRuns) -> None:
    @router.get("/bench")
    async def runs() -> dict[str, Any]:
        """The latest runs of `llmserve bench` against this cluster, from here and from terminals, the latest
        first, without their points; and which one goes on."""
        return await asyncio.to_thread(bench.list)

    @router.post("/bench")
    async def start(body: BenchBody = BenchBody()) -> dict[str, Any]:  # noqa: B008
        """Runs a small load, one at a time (429). Answers at once with its id."""
        return await bench.start(body)

    @router.delete("/bench")
    async def stop() -> dict[str, Any]:
        """Ends the run that goes on. What has ended by then is reported."""
        return await asyncio.to_thread(bench.stop)

    @router.get("/bench/{run_id}")
    async def run(run_id: str) -> dict[str, Any]:
        """One run, with its points."""
        return await asyncio.to_thread(bench.read, run_id)


def _add_orders(router: APIRouter, data: ConsoleData) -> None:
    @router.post("/workers/{worker}/drain")
    async def drain_worker(worker: str, body: DrainBody = DrainBody()) -> dict[str, Any]:  # noqa: B008
        """Takes a worker out of service: what runs there ends, or goes on elsewhere; then it stops."""
        return await drain(data.routers, worker, body.timeout_seconds)

    @router.delete("/workers/{worker}/drain")
    async def take_worker_back(worker: str) -> dict[str, Any]:
        """Takes a worker back that is drained, or is about to be."""
        return await take_back(data.routers, worker, data.look.processes)
