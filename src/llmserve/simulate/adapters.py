"""The adapters of a simulated worker: device slots, shared memory and disk, in virtual time.

All adapters are on the disk of each worker: a cluster routes to a version when every worker has fetched it.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from llmserve.core.adapters import AdapterReport, AdapterState, AdapterTier
from llmserve.core.clock import Agenda
from llmserve.core.ids import AdapterDigest
from llmserve.router.adapters.registration import AdapterWish, Registration
from llmserve.router.adapters.snapshot import AdapterSnapshot
from llmserve.traces import TracedRequest


def with_adapters(
    requests: Sequence[TracedRequest], adapters: int, skew: float, rng: random.Random
) -> list[TracedRequest]:
    """Gives each request one of so many adapters, drawn by Zipf's law: the n-th most popular one has a part
    of 1 / n ** skew. With a skew of 0 all are alike."""
    weights = list(accumulate((number + 1) ** -skew for number in range(adapters)))
    names = [made_up_digest(number) for number in range(adapters)]
    drawn = rng.choices(names, cum_weights=weights, k=len(requests))
    return [replace(request, adapter=adapter) for request, adapter in zip(requests, drawn, strict=True)]


def made_up_digest(number: int) -> AdapterDigest:
    """The version of a made-up adapter."""
    return AdapterDigest(hashlib.sha256(f"adapter {number}".encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class AdapterTiers:
    """slots: versions on the device. versions: all that are on disk. in_memory: versions that shared memory
    has room for. memory_seconds, disk_seconds: time of a load from there into a slot."""

    slots: int = 0
    in_memory: int = 0
    memory_seconds: float = 0.0
    disk_seconds: float = 0.0
    versions: Sequence[AdapterDigest] = ()

    def book(self, model: str) -> AdapterSnapshot:
        """What the router knows from the start: every version is ready."""
        registrations = [
            Registration(number, model, AdapterWish(digest, "simulated"), AdapterState.READY, digest)
            for number, digest in enumerate(self.versions, 1)
        ]
        return AdapterSnapshot(len(registrations), registrations)


NO_TIERS = AdapterTiers()  # a worker without adapters


class VirtualAdapters:
    """hold .. let_go enclose a request of an engine. A slot that no request holds is used again, the one that
    was used longest ago first. on_change: called when a version has come to another tier."""

    def __init__(self, tiers: AdapterTiers, agenda: Agenda, on_change: Callable[[], None]) -> None:
        self._tiers, self._agenda, self._on_change = tiers, agenda, on_change
        self._slots: dict[AdapterDigest, int] = {}  # requests of each; the one used last comes last
        self._in_memory: dict[AdapterDigest, None] = {}  # likewise
        self._loading: dict[AdapterDigest, list[Callable[[], None]]] = {}
        self._reports = {
            digest: AdapterReport(number, digest, tier=AdapterTier.DISK)
            for number, digest in enumerate(tiers.versions, 1)
        }
        self.found: Counter[AdapterTier] = Counter()  # requests by where their adapter was

    @property
    def waiting_requests(self) -> int:
        """Requests whose adapter is being loaded."""
        return sum(map(len, self._loading.values()))

    def reports(self) -> list[AdapterReport]:
        """One for each version."""
        return list(self._reports.values())

    def hold(self, adapter: AdapterDigest, ready: Callable[[], None]) -> None:
        """Calls `ready` when the version is in a slot. The router never places more than there are slots."""
        if not adapter:
            ready()
            return
        requests = self._slots.pop(adapter, None)
        if requests is None:
            self._load(adapter)
        self._slots[adapter] = (requests or 0) + 1
        if adapter in self._loading:
            self._loading[adapter].append(ready)
        else:
            self.found[AdapterTier.DEVICE] += 1
            ready()

    def let_go(self, adapter: AdapterDigest) -> None:
        if adapter:
            self._slots[adapter] -= 1

    # -- parts

    def _load(self, adapter: AdapterDigest) -> None:
        if len(self._slots) == self._tiers.slots:
            idle = next(name for name, requests in self._slots.items() if not requests)
            del self._slots[idle]
            self._report(idle)
        tier = AdapterTier.DRAM if adapter in self._in_memory else AdapterTier.DISK
        seconds = self._tiers.memory_seconds if tier is AdapterTier.DRAM else self._tiers.disk_seconds
        self.found[tier] += 1
        self._loading[adapter] = []
        self._agenda.at(self._agenda.now + seconds, lambda: self._loaded(adapter, seconds))
        self._keep_in_memory(adapter)

    def _keep_in_memory(self, adapter: AdapterDigest) -> None:
        self._in_memory.pop(adapter, None)
        self._in_memory[adapter] = None
        if len(self._in_memory) > self._tiers.in_memory:
            last = next(iter(self._in_memory))
            del self._in_memory[last]
            self._report(last)

    def _loaded(self, adapter: AdapterDigest, seconds: float) -> None:
        waiting = self._loading.pop(adapter)
        self.found[AdapterTier.DEVICE] += len(waiting) - 1
        self._report(adapter, seconds)
        self._on_change()
        for ready in waiting:
            ready()

    def _report(self, adapter: AdapterDigest, seconds: float | None = None) -> None:
        """seconds: of a load that has just ended."""
        tier = AdapterTier.DRAM if adapter in self._in_memory else AdapterTier.DISK
        if adapter in self._slots:
            tier = AdapterTier.DEVICE
        old = self._reports[adapter]
        took = old.load_seconds if seconds is None else seconds
        self._reports[adapter] = replace(old, tier=tier, load_seconds=took)
