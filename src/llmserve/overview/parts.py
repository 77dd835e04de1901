"""Parts of a snapshot: about one thing, and what a tenant may see. Pure."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmserve.overview.views import RoleView, Snapshot

OF_TENANTS = ("queued_requests", "running_requests", "queue_limit_requests", "tenants", "budgets")
OF_KV = ("directory_blocks", "open_leases", "leased_blocks", "orphan_blocks", "tiers", "index")


def tenants_part(now: Snapshot) -> dict[str, Any]:
    """Returns what `/admin/v1/tenants` shows, with the names of the whole."""
    return {name: getattr(now, name) for name in OF_TENANTS}


def kv_part(now: Snapshot) -> dict[str, Any]:
    """Returns what `/admin/v1/kv` shows, with the names of the whole."""
    return {name: getattr(now, name) for name in OF_KV}


_PLACE = re.compile(r"[^\s,;]*[^\s,;:]:\d+\b|(?<![^\s'\"])/[^\s,;:'\"]+")  # HOST:PORT, or a path

_FAILED = "only admins see why it cannot be had"


def for_tenant(now: Snapshot, tenant: str) -> Snapshot:
    """Returns what somebody may see who is no admin: no other tenant, and not where processes run."""
    hottest = tuple(one for one in now.index.hottest if one.tenant == tenant)
    return replace(
        now,
        adapters=tuple(map(_without_source, now.adapters)),
        pid=0,
        base_urls=(),
        roles=tuple(_without_place(role) for role in now.roles),
        tenants=tuple(one for one in now.tenants if one.name == tenant),
        index=replace(now.index, followed=(), away=(), hottest=hottest),
        problems=tuple(map(_without_places, now.problems)),
    )


def _without_source(adapter: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the row of an adapter without its source, which errors repeat."""
    workers = [{**place, "error": place["error"] and _FAILED} for place in adapter["workers"]]
    return {**adapter, "source": "", "error": adapter["error"] and _FAILED, "workers": workers}


def _without_place(role: RoleView) -> RoleView:
    worker = role.worker and replace(role.worker, reason=_without_places(role.worker.reason))
    return replace(role, pid=0, address="", log="", health=_without_places(role.health), worker=worker)


def _without_places(text: str) -> str:
    return _PLACE.sub("…", text)
