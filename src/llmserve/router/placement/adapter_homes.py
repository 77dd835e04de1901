"""Which workers of a group are to have an adapter: its homes. Pure.

Every version has a first home, and a popular one has more: each takes at most about half of a worker's fair
share of all requests from it. Rendezvous hashing orders the workers for each version, so a worker that
comes or goes moves only the versions whose home it is, and any two routers agree without a word.

Homes are a preference, not a rule. The chooser (kv_aware.py) asks for them to price a load elsewhere higher,
and takes the least sum: a home with a long queue sends its versions elsewhere.

The number of homes follows the demand with hysteresis: it grows when each home has more than `_GROW_ABOVE`
of a worker's fair share from the version, and shrinks when one home fewer would have less than
`_SHRINK_BELOW` each, by one home in `_SECONDS_BETWEEN_CHANGES`.
"""

from collections.abc import Sequence, Set
from hashlib import blake2b
from itertools import islice

from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.router.placement.balance import RecentCounts
from llmserve.router.workers.worker import ClusterMember

_GROW_ABOVE = 0.5
_SHRINK_BELOW = 0.25
_SECONDS_BETWEEN_CHANGES = 10.0
# Placements for each worker. At the bound for growing, half of a worker's share is then 32 requests, so that
# chance alone does not cross the way between the two bounds.
_REMEMBERED_EACH = 64.0
_MOST_ORDERS = 1024  # adapters whose order of workers is kept
_MOST_GONE = 64  # workers that have gone and are still in the orders


class _Homes:
    """The number of homes of one version, and when it changed last."""

    __slots__ = ("changed_at", "count")

    def __init__(self, count: int, changed_at: float) -> None:
        self.count, self.changed_at = count, changed_at


class AdapterHomes:
    """One for each group of workers of a model and a role. `placed` is called with every placement in the
    group, also those without an adapter: demand is a share of all of them."""

    def __init__(self) -> None:
        self._demand: RecentCounts[AdapterDigest] = RecentCounts()
        self._several: dict[AdapterDigest, _Homes] = {}  # versions that have, or had, more than one
        self._workers: set[WorkerId] = set()
        self._orders: dict[AdapterDigest, Sequence[WorkerId]] = {}

    def placed(self, adapter: AdapterDigest, workers: int, now: float) -> None:
        """A request of this version was placed on one of so many workers."""
        self._demand.add(adapter, _REMEMBERED_EACH * workers)
        if adapter:
            self._adapt(adapter, self._demand.share(adapter) * workers, workers, now)

    def count(self, adapter: AdapterDigest) -> int:
        """How many homes the version has; at least 1."""
        homes = self._several.get(adapter)
        return homes.count if homes else 1

    def of(self, adapter: AdapterDigest, members: Sequence[ClusterMember]) -> Set[WorkerId]:
        """The homes among these workers. A home that is not among them is replaced by the next."""
        here = {member.spec.worker_id for member in members}
        in_order = (worker_id for worker_id in self._order(adapter, here) if worker_id in here)
        return set(islice(in_order, self.count(adapter)))

    # -- parts

    def _adapt(self, adapter: AdapterDigest, share: float, workers: int, now: float) -> None:
        """share: of the group's placements, as a multiple of a worker's fair share."""
        homes = self._several.get(adapter)
        count = homes.count if homes else 1
        wanted = _wanted(count, share, workers)
        if homes is None and wanted == 1:
            return
        if homes is None:
            self._forget_settled(now)
            homes = self._several[adapter] = _Homes(1, float("-inf"))
        if wanted != count and now - homes.changed_at >= _SECONDS_BETWEEN_CHANGES:
            homes.count, homes.changed_at = wanted, now

    def _forget_settled(self, now: float) -> None:
        """Drops versions that have had one home for long."""
        long_ago = now - _SECONDS_BETWEEN_CHANGES
        for adapter in [a for a, homes in self._several.items() if homes.count == 1]:
            if self._several[adapter].changed_at < long_ago:
                del self._several[adapter]

    def _order(self, adapter: AdapterDigest, here: Set[WorkerId]) -> Sequence[WorkerId]:
        """All workers of the group, the first home first. It is kept while no new worker comes: sorting a
        hundred takes longer than placing a request."""
        if not here <= self._workers:
            self._add_workers(here)
        order = self._orders.get(adapter)
        if order is None:
            if len(self._orders) == _MOST_ORDERS:
                del self._orders[next(iter(self._orders))]
            order = self._orders[adapter] = sorted(self._workers, key=lambda name: _weight(adapter, name))
        return order

    def _add_workers(self, here: Set[WorkerId]) -> None:
        """A worker is new. Those that it knew may be full for the moment, or gone."""
        if len(self._workers) > len(here) + _MOST_GONE:
            self._workers.clear()
        self._workers |= here
        self._orders.clear()


def first_home(adapter: AdapterDigest, members: Sequence[ClusterMember]) -> ClusterMember:
    """The worker that is the home of a version with one home. members: at least one."""
    return min(members, key=lambda member: _weight(adapter, member.spec.worker_id))


def _wanted(count: int, share: float, workers: int) -> int:
    """The next number of homes: one more, one fewer, or the same."""
    if share > _GROW_ABOVE * count and count < workers:
        return count + 1
    return count - 1 if count > 1 and share < _SHRINK_BELOW * (count - 1) else count


def _weight(adapter: AdapterDigest, worker_id: WorkerId) -> bytes:
    """A random number for the pair, the same everywhere."""
    return blake2b(f"{adapter} {worker_id}".encode(), digest_size=8).digest()
