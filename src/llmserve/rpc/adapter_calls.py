"""Asks the router about adapters for operators, and shows its answers."""

from typing import Any

from llmserve.core.adapters import AdapterTier
from llmserve.rpc.adapters import decode_adapter_report, decode_named, encode_tier
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import RouterAddresses, ask_leader

_ASK_SECONDS = 5.0


class AdapterClient:
    """model: its name; empty: the only one. seconds: a call waits for no
    longer. All calls are idempotent. Errors: InvalidRequest and NotFound as the router says them,
    DeadlineExceeded, Unavailable when no router leads."""

    def __init__(self, routers: RouterAddresses, model: str = "") -> None:
        self._routers, self._model = routers, model

    async def load(
        self,
        name: str,
        source: str,
        seconds: float,
        *,
        pin: bool = False,
        tier: AdapterTier | None = None,
        implicit: bool = False,
    ) -> router_pb2.AdapterStatus:
        """Returns when requests may use it. tier: at least so near to every worker from the start; None: on
        its host. implicit: for one request, so that it ends when none uses it. Errors: also those of its
        source."""
        request = router_pb2.LoadAdapterRequest(
            model=self._model, name=name, source=source, pin=pin, prefetch=_wire(tier), implicit=implicit
        )
        answer: router_pb2.LoadAdapterResponse = await ask_leader(
            self._routers, lambda stub: stub.LoadAdapter(request, timeout=seconds)
        )
        return answer.adapter

    async def unload(self, name: str, seconds: float, *, wait: bool = False) -> router_pb2.AdapterStatus:
        """wait: until no worker has it any more."""
        request = router_pb2.UnloadAdapterRequest(model=self._model, name=name, wait=wait)
        answer: router_pb2.UnloadAdapterResponse = await ask_leader(
            self._routers, lambda stub: stub.UnloadAdapter(request, timeout=seconds)
        )
        return answer.adapter

    async def keep(
        self,
        name: str,
        seconds: float,
        *,
        pin: bool | None = None,
        tier: AdapterTier | None = None,
        wait: bool = False,
    ) -> router_pb2.AdapterStatus:
        """Asks that every worker has an adapter in this tier, or nearer; pin: that it stays there. None: as
        before. wait: until it is there."""
        request = router_pb2.KeepAdapterRequest(
            model=self._model, name=name, tier=_wire(tier), pin=pin, wait=wait
        )
        answer: router_pb2.KeepAdapterResponse = await ask_leader(
            self._routers, lambda stub: stub.KeepAdapter(request, timeout=seconds)
        )
        return answer.adapter

    async def list(self) -> list[router_pb2.AdapterStatus]:
        """Returns all versions that are not gone."""
        request = router_pb2.ListAdaptersRequest(model=self._model)
        answer = await ask_leader(
            self._routers, lambda stub: stub.ListAdapters(request, timeout=_ASK_SECONDS)
        )
        return list(answer.adapters)


def _wire(tier: AdapterTier | None) -> router_pb2.AdapterTier:
    return router_pb2.ADAPTER_TIER_UNSPECIFIED if tier is None else encode_tier(tier)


def adapter_row(status: router_pb2.AdapterStatus) -> dict[str, Any]:
    """Returns a version of an adapter as `/admin/v1/adapters` and `llmserve adapters --json` show it."""
    adapter = decode_named(status.adapter)
    return {
        "name": adapter.name,
        "version": adapter.digest or None,
        "state": status.state,
        "error": status.error or None,
        "model": adapter.parent,
        "source": adapter.source,
        "rank": adapter.rank or None,
        "size_bytes": adapter.size_bytes or None,
        "pinned": status.pinned,
        "running_requests": status.running_requests,
        "workers": [_place_row(place) for place in status.places],
    }


def _place_row(place: router_pb2.AdapterPlace) -> dict[str, Any]:
    report = decode_adapter_report(place.report)
    return {
        "worker": place.worker_id,
        "tier": report.tier,
        "running_requests": report.running,
        "load_seconds": report.load_seconds or None,
        "error": report.message or None,
    }
