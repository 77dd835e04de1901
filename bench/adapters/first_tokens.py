"""Times the first token of requests by where their adapter was, as the workers' own counters say it."""

import asyncio
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from bench.adapters.ask import FirstTokens, asking
from bench.cluster import Cluster
from bench.table import Figure

_WORKERS = ("prefill-0", "decode-0")
_LABELS = re.compile(r'worker_adapter_legs_total\{tier="(\w+)"\}')
_LOAD_SECONDS = 120.0
Row = tuple[object, ...]


async def near(cluster: Cluster, names: Sequence[str], slots: int, repeats: int) -> list[Row]:
    """Returns rows for the model itself, and for adapters in a slot, prefetched, and in DRAM. Each adapter is
    prefetched once. The engines rest while it is, so one that was used is timed after such a rest, too:
    what a prefetched one takes beyond that is the price of its first use."""
    warm, *others = names[: slots + 1]
    async with _timing(cluster) as timer:
        await timer.first.median_of("", 2)  # the first requests of all
        for fresh in names[slots + 1 : slots + 1 + repeats]:
            await timer.time("the model itself", "")
            await timer.first.of(warm)
            await timer.time("an adapter in a slot", warm)
            await timer.fill(others)
            rest_seconds = await timer.prefetch(fresh)
            await timer.time("prefetched", fresh)
            await asyncio.sleep(rest_seconds)
            await timer.time("an adapter in a slot, after a rest as long as a prefetch", fresh)
        return [*timer.rows(), *await cold("DRAM", cluster, names, slots, repeats)]


async def cold(tier: str, cluster: Cluster, names: Sequence[str], slots: int, repeats: int) -> list[Row]:
    """Returns the row of adapters that were used before, and have lost their slot since."""
    async with _timing(cluster) as timer:
        for _ in range(repeats):
            await timer.first.of(names[0])
            await timer.fill(names[1 : slots + 1])
            await timer.time(f"cold, from {tier}", names[0])
        return timer.rows()


async def from_source(source: str, cluster: Cluster, sources: Mapping[str, str]) -> list[Row]:
    """Returns rows for loading adapters, each by its name and source, and for the first request of each."""
    async with _timing(cluster) as timer:
        await timer.first.median_of("", 2)
        for name, where in sources.items():
            await timer.load(f"load from {source}, until ready", name, where)
            await timer.time("first use after that", name)
        return timer.rows()


@dataclass(slots=True)
class _Case:
    """places: where workers had the adapter, with the role, of all requests."""

    seconds: list[float] = field(default_factory=list)
    places: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Timer:
    cluster: Cluster
    first: FirstTokens
    client: httpx.AsyncClient
    cases: dict[str, _Case] = field(default_factory=dict)

    async def time(self, what: str, name: str) -> None:
        case = self.cases.setdefault(what, _Case())
        before = self._counted()
        case.seconds.append(await self.first.of(name))
        case.places += self._counted() - before

    async def load(self, what: str, name: str, source: str) -> None:
        started = time.perf_counter()
        await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": source})
        self.cases.setdefault(what, _Case()).seconds.append(time.perf_counter() - started)

    async def fill(self, names: Sequence[str]) -> None:
        """Uses so many adapters that no other one has a slot."""
        for name in names:
            await self.first.of(name)

    async def prefetch(self, name: str) -> float:
        """Returns the seconds that it took."""
        started = time.perf_counter()
        await self._post(f"/admin/v1/adapters/{name}/prefetch", {"tier": "device", "wait": True})
        return time.perf_counter() - started

    def rows(self) -> list[Row]:
        print(*self.cases.items(), sep="\n", file=sys.stderr, flush=True)
        return [
            (
                what,
                Figure.of(case.seconds).text(),
                ", ".join(f"{place}: {n}" for place, n in case.places.items()),
            )
            for what, case in self.cases.items()
        ]

    async def _post(self, path: str, body: Mapping[str, object]) -> None:
        (await self.client.post(f"{self.cluster.url}{path}", json=body)).raise_for_status()

    def _counted(self) -> Counter[str]:
        """Requests with an adapter so far, by worker and place."""
        found = Counter[str]()
        for worker in _WORKERS:
            for sample, value in self.cluster.metrics(worker).items():
                if labels := _LABELS.fullmatch(sample):
                    found[f"{worker} {labels[1]}"] = int(value)
        return found


@asynccontextmanager
async def _timing(cluster: Cluster) -> AsyncIterator[_Timer]:
    async with asking(cluster.url) as first, httpx.AsyncClient(timeout=_LOAD_SECONDS) as client:
        yield _Timer(cluster, first, client)
