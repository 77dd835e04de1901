"""Adapters that waiting requests will need: they come near to where the requests will probably run. Pure.

While a request waits in the queue, its version is brought into DRAM on its first home of each role
(placement/adapter_homes.py), unless a worker of the role has it there or in a slot. The workers learn of it
by their orders, with the next heartbeat. They make room only by what nobody uses, and a version that finds
none stays on disk.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from llmserve.core.adapters import AdapterTier
from llmserve.core.ids import AdapterDigest, RequestId, WorkerId
from llmserve.core.outcome import WorkerRole
from llmserve.router.adapters.lifecycle import AdapterLifecycle
from llmserve.router.placement.adapter_homes import first_home
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import ClusterMember

# Versions that one worker brings near at the same time. The next one has to wait until one of them is not
# awaited any more.
_MOST_EACH = 4

_Version = tuple[str, AdapterDigest]  # of a model


class AwaitedAdapters:
    """wait .. leave enclose the time in which a request waits. Both are idempotent."""

    def __init__(self, membership: ClusterMembership, lifecycle: AdapterLifecycle) -> None:
        self._membership, self._lifecycle = membership, lifecycle
        self._waiting: dict[_Version, set[RequestId]] = {}
        self._workers: dict[_Version, set[WorkerId]] = {}  # those that bring it near
        self._busy: Counter[WorkerId] = Counter()  # versions that each of them brings near

    def wait(self, request_id: RequestId, placement: PlacementRequest) -> None:
        if placement.adapter:
            version = placement.model, placement.adapter
            self._waiting.setdefault(version, set()).add(request_id)
            self._begin(version)

    def leave(self, request_id: RequestId, placement: PlacementRequest) -> None:
        version = placement.model, placement.adapter
        requests = self._waiting.get(version, set())
        requests.discard(request_id)
        if not requests and self._waiting.pop(version, None) is not None:
            self._end(version)

    # -- parts

    def _begin(self, version: _Version) -> None:
        if version in self._workers:
            return
        chosen = {one for one in self._far_homes(*version) if self._busy[one] < _MOST_EACH}
        if chosen:
            self._workers[version] = chosen
            self._busy.update(chosen)
            self._lifecycle.bring_near(*version, chosen)

    def _end(self, version: _Version) -> None:
        workers = self._workers.pop(version, None)
        if workers is None:
            return
        self._busy.subtract(workers)
        self._lifecycle.bring_near(*version, frozenset())
        for other in list(islice((one for one in self._waiting if one not in self._workers), _MOST_EACH)):
            self._begin(other)

    def _far_homes(self, model: str, adapter: AdapterDigest) -> Iterator[WorkerId]:
        """Yields the first home of each role none of whose workers has the version near."""
        for role in WorkerRole:
            members = [m for m in self._membership.available(model, role) if adapter not in m.ruled_out]
            if members and not any(_is_near(member, adapter) for member in members):
                yield first_home(adapter, members)


def _is_near(member: ClusterMember, adapter: AdapterDigest) -> bool:
    report = member.adapters.get(adapter)
    return report is not None and report.tier.is_at_least(AdapterTier.DRAM)
