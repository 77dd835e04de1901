"""Adapters that have waited long get a slot, however busy the others are. Pure.

A version has no place while every slot is held by running requests of others, and those may get new requests
for ever. So after a time one worker of each role that has no slot for it stops taking requests of one of its
versions (AdapterSlots.keep). That version's requests end some time, and the slot goes to the one that waits.
"""

from collections.abc import Sequence

from llmserve.core.ids import AdapterDigest
from llmserve.core.request import WorkerRole
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import ClusterMember


class AdapterRoom:
    """make .. forgo: the caller forgoes the room of a request when it is placed, or leaves the queue."""

    def __init__(self, membership: ClusterMembership) -> None:
        self._membership = membership

    def loaded(self, request: PlacementRequest) -> bool:
        """Whether a worker that could decode the request has loaded its adapter."""
        roles = (WorkerRole.DECODE, WorkerRole.AGGREGATED)
        groups = (self._membership.available(request.model, role) for role in roles)
        return any(member.has_loaded(request.adapter) for group in groups for member in group)

    def make(self, request: PlacementRequest) -> None:
        """Keeps a slot for the request's adapter in each role without one. Idempotent."""
        for role in WorkerRole:
            members = self._membership.available(request.model, role)
            usable = [m for m in members if _may_run(m, request)]
            self._keep(usable, request.adapter)

    def forgo(self, request: PlacementRequest) -> None:
        """The request needs no room any more. Ignores one that has none."""
        if not request.adapter:
            return
        for member in self._membership:
            member.slots.adapters.forgo(request.adapter)

    def _keep(self, members: Sequence[ClusterMember], adapter: AdapterDigest) -> None:
        if any(_has_room(member, adapter) for member in members):
            return
        able = [m for m in members if m.slots.adapters and not m.slots.adapters.kept_for]
        if able:
            slots = min((member.slots.adapters for member in able), key=lambda one: one.fewest_requests)
            slots.keep(adapter)


def _has_room(member: ClusterMember, adapter: AdapterDigest) -> bool:
    """Whether the adapter has a slot on the worker, or is to get one."""
    slots = member.slots.adapters
    return slots.kept_for == adapter or slots.fits(adapter, member.spec.lora.slots)


def _may_run(member: ClusterMember, request: PlacementRequest) -> bool:
    return member.spec.worker_id not in request.excluded_workers and request.adapter not in member.ruled_out
