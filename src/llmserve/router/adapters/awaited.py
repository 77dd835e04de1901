"""Adapters that waiting requests will need: they come near to where the requests will probably run. Pure.

While a request waits in the queue, its version is brought into DRAM on its first home of each role
(placement/adapter_homes.py), unless a worker of the role has it there or in a slot. The workers learn of it
by their orders, with the next heartbeat. They make room only by what nobody uses, and a version that finds
none stays on disk. When such a worker can run it no more, another one takes its place.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from llmserve.core.adapters import AdapterTier
from llmserve.core.clock import Clock
from llmserve.core.ids import AdapterDigest, RequestId, WorkerId
from llmserve.core.request import WorkerRole
from llmserve.router.adapters.lifecycle import AdapterLifecycle
from llmserve.router.placement.adapter_homes import first_home
from llmserve.router.placement.planner import PlacementRequest
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import ClusterMember

# Versions that one worker brings near at the same time. The next one has to wait until one of them is not
# awaited any more.
_MOST_EACH = 4

_Version = tuple[str, AdapterDigest]  # of a model


@dataclass(frozen=True, slots=True)
class AdapterPrefetch:
    """A worker brings a version into DRAM for requests that wait. tier: where it had the version when it was
    ordered. seconds: from the order until the router heard that it is there; None: it has not heard so."""

    worker_id: WorkerId
    tier: AdapterTier
    began_at: float
    seconds: float | None = None


class AwaitedAdapters:
    """wait .. leave enclose the time in which a request waits. Both are idempotent. `follow` is called after
    each event, since workers may have come or gone."""

    def __init__(self, clock: Clock, membership: ClusterMembership, lifecycle: AdapterLifecycle) -> None:
        self._clock, self._membership, self._lifecycle = clock, membership, lifecycle
        self._waiting: dict[_Version, set[RequestId]] = {}
        self._prefetches: dict[_Version, Mapping[WorkerId, AdapterPrefetch]] = {}
        self._busy: Counter[WorkerId] = Counter()  # versions that each of them brings near
        self._followed = membership.availability

    def wait(self, request_id: RequestId, placement: PlacementRequest) -> None:
        if placement.adapter:
            version = placement.model, placement.adapter
            self._waiting.setdefault(version, set()).add(request_id)
            self._choose(version)

    def leave(self, request_id: RequestId, placement: PlacementRequest) -> None:
        version = placement.model, placement.adapter
        requests = self._waiting.get(version, set())
        requests.discard(request_id)
        if not requests and self._waiting.pop(version, None) is not None and version in self._prefetches:
            self._order(version, {})
            for other in list(
                islice((one for one in self._waiting if one not in self._prefetches), _MOST_EACH)
            ):
                self._choose(other)

    def follow(self) -> None:
        """Chooses again where a worker that brings a version near cannot run it any more, and where one has
        come that can."""
        if self._followed != self._membership.availability:
            self._followed = self._membership.availability
            for version in list(self._waiting):
                self._choose(version)

    def heard(self, member: ClusterMember) -> None:
        """The worker has said where it has versions."""
        name, now = member.spec.worker_id, self._clock.now()
        for version, workers in self._prefetches.items():
            one = workers.get(name)
            if one is not None and one.seconds is None and _is_near(member, version[1]):
                self._prefetches[version] = {**workers, name: replace(one, seconds=now - one.began_at)}

    def of(self, request_id: RequestId, placement: PlacementRequest) -> Sequence[AdapterPrefetch]:
        """Returns what workers do for the version of this request, if it waits."""
        version = placement.model, placement.adapter
        if request_id not in self._waiting.get(version, ()):
            return ()
        return tuple(self._prefetches.get(version, {}).values())

    # -- parts

    def _choose(self, version: _Version) -> None:
        before = self._prefetches.get(version, {})
        chosen = {one.worker_id: one for one in self._chosen(*version, before)}
        if chosen.keys() != before.keys():
            self._order(version, chosen)

    def _order(self, version: _Version, chosen: Mapping[WorkerId, AdapterPrefetch]) -> None:
        """Orders these workers, and no others, to bring the version near."""
        self._busy.subtract(self._prefetches.pop(version, {}).keys())
        self._busy.update(chosen.keys())
        if chosen:
            self._prefetches[version] = chosen
        self._lifecycle.bring_near(*version, frozenset(chosen))

    def _chosen(
        self, model: str, adapter: AdapterDigest, before: Mapping[WorkerId, AdapterPrefetch]
    ) -> Iterator[AdapterPrefetch]:
        """Yields those of before that go on, and the first home of each other role none of whose workers has
        the version near."""
        for role in WorkerRole:
            members = [m for m in self._membership.available(model, role) if _can_run(m, adapter)]
            going_on = [before[m.spec.worker_id] for m in members if m.spec.worker_id in before]
            yield from going_on
            if members and not going_on and not any(_is_near(member, adapter) for member in members):
                home = first_home(adapter, members)
                if self._busy[home.spec.worker_id] < _MOST_EACH:
                    yield AdapterPrefetch(home.spec.worker_id, _tier(home, adapter), self._clock.now())


def _can_run(member: ClusterMember, adapter: AdapterDigest) -> bool:
    return member.spec.lora.slots > 0 and adapter not in member.ruled_out


def _tier(member: ClusterMember, adapter: AdapterDigest) -> AdapterTier:
    report = member.adapters.get(adapter)
    return AdapterTier.SOURCE if report is None else report.tier


def _is_near(member: ClusterMember, adapter: AdapterDigest) -> bool:
    return _tier(member, adapter).is_at_least(AdapterTier.DRAM)
