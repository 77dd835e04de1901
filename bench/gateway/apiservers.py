"""What more apiservers at one port change: `bench gateway --apiservers 1 2 4`.

One cluster for each number of apiservers, all of them at once and in turns, under the same load. More of them
make nothing quicker where the cores are busy already, so what counts is that a request costs each process as
much as before, and that all apiservers get their share. A message between processes carries less when more of
them send, or fewer clients wait at each. So the table has the number of messages, and rows of one apiserver
with as many clients as each of several has. Connecting is not counted.
"""

import asyncio
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import uvloop

from bench.cluster import Cluster, running
from bench.gateway.load import Load, Prompts, connected, drive, drive_over
from bench.gateway.turns import Case, Target, Turn
from bench.table import markdown

_ENGINES = ("kvmanager", "prefill", "decode")
_WARM_SECONDS, _ACCEPT_SECONDS = 1.0, 0.25
_HEADINGS = (
    *("apiservers", "case", "clients", "requests/s", "share of an apiserver", "apiservers ms", "router ms"),
    *("KV manager, workers ms", "cores", "router decisions", "worker messages"),
    *("requests/s a core of apiserver", "of router"),
)


MakePrompts = Callable[[Case, str, str], Prompts]  # of an address and the name of a model


@dataclass(frozen=True, slots=True)
class _Load:
    """seconds: of a turn."""

    make_prompts: MakePrompts
    seconds: float
    numbers: Iterator[int]


@dataclass(frozen=True, slots=True)
class _Target(Target):
    """cluster: of `apiservers` apiservers."""

    cluster: Cluster
    apiservers: int

    @property
    def model(self) -> str:
        return str(self.cluster.state()["model"])

    def served(self) -> Sequence[float]:
        """Requests that each apiserver has ended."""
        names = (f"apiserver-{index}" for index in range(self.apiservers))
        return [self.cluster.total(name, "apiserver_requests_total") for name in names]

    def decisions(self) -> float:
        """Each follows one message from an apiserver or a worker, or a time."""
        return self.cluster.total("router-0", "router_decision_seconds_count")

    def worker_messages(self) -> float:
        return sum(self.cluster.total(name, "worker_messages_total") for name in ("prefill-0", "decode-0"))


@dataclass(frozen=True, slots=True)
class MeasuredTurn:
    """shares: of the requests, of each apiserver; 1: its fair one. decisions, messages: a request's."""

    turn: Turn
    shares: Sequence[float]
    decisions: float
    messages: float

    def cpu_ms(self, *roles: str) -> float:
        return sum(ms for name, ms in self.turn.cpu_ms.items() if name.rpartition("-")[0] in roles)

    @property
    def rate(self) -> float:
        return self.turn.load.requests / self.turn.load.seconds

    @property
    def cores(self) -> float:
        return self.rate * sum(self.turn.cpu_ms.values()) / 1000


def compare(
    counts: Sequence[int],
    manifest: Mapping[str, Any],
    cases: Sequence[Case],
    make_prompts: MakePrompts,
    seconds: float,
    repeats: int,
) -> str:
    """One apiserver is always among those that are compared."""
    with ExitStack() as stack:
        targets = [
            _target(stack.enter_context(running(_with(manifest, count))), count)
            for count in sorted({1, *counts})
        ]
        load = _Load(make_prompts, seconds, itertools.count(1))
        rows = [row for case in cases for row in _rows(case, targets, load, repeats)]
        uneven = [_uneven_row(case, target, load) for case in cases for target in targets[1:]]
    headings = ("apiservers", "case", "connections", "requests/s of each", "p50 ms", "p99 ms")
    return (
        f"CPU ms, decisions and messages a request:\n\n{markdown(_HEADINGS, rows)}\n\n"
        f"One apiserver has all connections but one:\n\n{markdown(headings, uneven)}"
    )


def _with(manifest: Mapping[str, Any], apiservers: int) -> dict[str, Any]:
    changed = deepcopy(dict(manifest))
    changed["spec"]["deployment"]["replicas"]["apiserver"] = apiservers
    return changed


def _target(cluster: Cluster, apiservers: int) -> _Target:
    pids = {role["name"]: int(role["pid"]) for role in cluster.state()["roles"]}
    return _Target(f"{apiservers} apiservers", cluster.url, pids, cluster, apiservers)


def _rows(case: Case, targets: Sequence[_Target], load: _Load, repeats: int) -> Iterator[tuple[object, ...]]:
    """All take turns; the first turn of each is not counted."""
    alone = [replace(case, clients=max(1, case.clients // target.apiservers)) for target in targets]
    pairs = [*((targets[0], one) for one in reversed(alone)), *((target, case) for target in targets[1:])]
    found: dict[tuple[str, Case], list[MeasuredTurn]] = {(target.name, one): [] for target, one in pairs}
    for target, one in pairs:
        uvloop.run(_take(target, one, replace(load, seconds=_WARM_SECONDS)))
    for target, one in pairs * repeats:
        found[target.name, one].append(uvloop.run(_take(target, one, load)))
    print(f"{case}, {case.clients} clients: done", file=sys.stderr)
    for target, one in pairs:
        yield row(one, target.apiservers, found[target.name, one])


async def _take(target: _Target, case: Case, load: _Load) -> MeasuredTurn:
    """Errors: SystemExit when a request failed."""
    prompts = load.make_prompts(case, target.url, target.model)
    async with connected(target.url, case.clients) as connections:
        await asyncio.sleep(_ACCEPT_SECONDS)
        served, decisions, messages = target.served(), target.decisions(), target.worker_messages()
        before = target.cpu_seconds()
        answered = await drive_over(connections, prompts, load.seconds, load.numbers)
        after = target.cpu_seconds()
    _check(target, answered)
    shares = [
        (now - then) * target.apiservers / answered.requests
        for now, then in zip(target.served(), served, strict=True)
    ]
    return MeasuredTurn(
        Turn(answered, {name: 1000 * (after[name] - before[name]) / answered.requests for name in after}),
        shares,
        (target.decisions() - decisions) / answered.requests,
        (target.worker_messages() - messages) / answered.requests,
    )


def _check(target: Target, load: Load) -> None:
    if load.failures:
        raise SystemExit(f"{target.name}: {len(load.failures)} requests failed: {load.failures[0]}")


def row(case: Case, apiservers: int, turns: Sequence[MeasuredTurn]) -> tuple[object, ...]:
    """Medians over the turns. The shares are those of the apiservers with the fewest and with the most
    requests."""
    apiserver = median(turn.cpu_ms("apiserver") for turn in turns)
    router = median(turn.cpu_ms("router") for turn in turns)
    least, most = median(min(turn.shares) for turn in turns), median(max(turn.shares) for turn in turns)
    figures = (
        *(apiserver, router, median(turn.cpu_ms(*_ENGINES) for turn in turns)),
        *(median(turn.cores for turn in turns), median(turn.decisions for turn in turns)),
        median(turn.messages for turn in turns),
    )
    return (
        *(apiservers, case, case.clients, f"{median(turn.rate for turn in turns):.0f}"),
        f"{least:.2f} to {most:.2f} x fair",
        *(f"{figure:.2f}" for figure in figures),
        *(f"{1000 / ms:.0f}" for ms in (apiserver, router)),
    )


def _uneven_row(case: Case, target: _Target, load: _Load) -> tuple[object, ...]:
    """Connections at the addresses of two apiservers: all but one at the first, one at the second."""
    counts = (case.clients - 1, 1)
    loads = uvloop.run(_drive_each(case, target, load, counts))
    for one in loads:
        _check(target, one)
    rates = (one.requests / one.seconds / count for one, count in zip(loads, counts, strict=True))
    return (
        *(target.apiservers, case, " + ".join(map(str, counts))),
        " and ".join(f"{rate:.1f}" for rate in rates),
        *(" and ".join(f"{1000 * one.percentile(at):.1f}" for one in loads) for at in (0.5, 0.99)),
    )


async def _drive_each(case: Case, target: _Target, load: _Load, counts: Sequence[int]) -> list[Load]:
    """counts: connections of the first apiservers."""
    addresses = (target.cluster.role(f"apiserver-{index}")["direct"] for index in range(len(counts)))
    urls = [f"http://{address}" for address in addresses]
    return await asyncio.gather(
        *(
            drive(url, load.make_prompts(case, url, target.model), count, load.seconds, load.numbers)
            for url, count in zip(urls, counts, strict=True)
        )
    )
