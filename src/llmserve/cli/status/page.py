"""Lays a snapshot of a cluster out for a screen. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llmserve.cli.adapters.page import places, version
from llmserve.cli.screen import table
from llmserve.core.request import PairStatus
from llmserve.core.stats import BatchGain, SpeculationReport
from llmserve.overview.snapshot import HEALTHY
from llmserve.overview.views import BudgetView, RoleView, Snapshot, TenantView, TierView, WorkerView

_MIB = 1 << 20
_GIB = 1 << 30
_PROOFS = {
    "unproven": "no prompt was looked for yet",
    "matches": "prompts are found again",
    "differs": "prompts are NOT found again",
}
_BAR_COLUMNS = 20
_NEARLY = 0.9  # of a budget or tier: worth a look
_MOST_TENANTS = 15
_MOST_ADAPTERS = 15
# Below this many columns a process has no pid and no address: load counts more.
_NARROW_COLUMNS = 110
# A matrix of more workers than these is for Grafana.
_MOST_COLUMNS = 8
# A transfer of less than this takes as long as it takes to begin.
_ENOUGH_BYTES = 1 << 20


def page(now: Snapshot, width: int, *, ways: bool = True) -> RenderableType:
    """width: columns of the screen. ways: shows each way to fetch KV; else only those with an error."""
    pairs = [(role.name, pair) for role in now.roles if role.worker for pair in role.worker.pairs]
    shown = [one for one in pairs if ways or one[1].failures or one[1].breaker != "closed"]
    parts: list[RenderableType] = [Text.from_markup(_headline(now)), _processes(now, width)]
    if now.tenants:
        parts.append(_tenants(now.tenants))
    if limited := [one for one in now.budgets if one.used_ratio is not None or one.refused_requests]:
        parts.append(_budgets(limited))
    if now.adapters:
        parts.append(_adapters(now.adapters))
    if now.tiers:
        parts.append(_tiers(now.tiers))
    if guesses := [(role.name, role.worker.speculation) for role in now.roles if role.worker]:
        parts.extend(_speculation([(name, one) for name, one in guesses if one]))
    if moves := [one for one in pairs if one[1].chosen]:
        parts.append(_matrix(moves))
    if shown:
        parts.append(_ways(shown))
    parts.append(Group(*map(Text, _lines(now))))
    return Group(*(line for part in parts for line in (part, "")))


def _headline(now: Snapshot) -> str:
    colour = "red" if now.problems else "green"
    return (
        f"[bold]{escape(now.cluster)}[/] [{colour}]{now.stand}[/] for {_duration(now.uptime_seconds)}, "
        f"serves {escape(now.model)} at {', '.join(f'{url}/v1' for url in now.base_urls)}"
    )


def _processes(now: Snapshot, width: int) -> Table:
    where = ("PID", "ADDRESS") if width >= _NARROW_COLUMNS else ()
    shown = table("PROCESS", "HEALTH", *where, "RESTARTS", "REQUESTS", "BLOCKS", "KV IN")
    several_routers = sum(role.role == "router" for role in now.roles) > 1
    for role in now.roles:
        at = (str(role.pid or "-"), role.address) if where else ()
        load = _worker_cells(role.worker) if role.worker else ()
        shown.add_row(role.name, _health(role, several_routers), *at, str(role.restarts), *load)
    return shown


def _health(role: RoleView, several_routers: bool) -> str:
    is_well = role.health == HEALTHY and (role.worker is None or role.worker.available)
    shown = HEALTHY if role.health == HEALTHY else role.stand
    if role.worker is not None and role.worker.draining:
        shown = "draining"
    standing = ", leads" if role.leads else ", stands by" if role.role == "router" else ""
    return f"[{'green' if is_well else 'red'}]{shown}[/]{standing if several_routers else ''}"


def _worker_cells(worker: WorkerView) -> Iterator[str]:
    yield f"{worker.running_requests}+{worker.waiting_requests}"
    leased = f", {worker.leased_blocks} leased" if worker.leased_blocks else ""
    yield f"{worker.used_blocks}/{worker.total_blocks}, {worker.stored_blocks} reusable{leased}"
    if not worker.transferred_bytes and not worker.transfer_failures:
        yield f"- ({', '.join(worker.transports)})"
        return
    failed = f", {worker.transfer_failures} failed" if worker.transfer_failures else ""
    yield f"{worker.last_transport} {_amount(worker.transferred_bytes)}{failed}"


def _tenants(tenants: Sequence[TenantView]) -> RenderableType:
    """Those with the longest queue come first."""
    shown = table("TENANT", "WEIGHT", "QUEUED", "RUNNING", "REFUSED", "MEAN WAIT", "SERVED TOKENS")
    ordered = sorted(tenants, key=lambda one: (-one.queued_requests, -one.running_requests, one.name))
    for one in ordered[:_MOST_TENANTS]:
        numbers = (one.queued_requests, one.running_requests, one.refused_requests)
        wait = f"{one.wait_seconds:.2f} s"
        shown.add_row(Text(one.name), f"{one.weight:g}", *map(str, numbers), wait, f"{one.served_tokens:,}")
    return _with_rest(shown, len(ordered) - _MOST_TENANTS)


def _adapters(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Those that run the most requests come first."""
    shown = table("ADAPTER", "VERSION", "STATE", "WORKERS", "RUNNING")
    ordered = sorted(rows, key=lambda row: (-row["running_requests"], row["name"]))
    for row in ordered[:_MOST_ADAPTERS]:
        cells = (row["name"], version(row), row["state"], places(row), str(row["running_requests"]))
        shown.add_row(*map(Text, cells))
    return _with_rest(shown, len(ordered) - _MOST_ADAPTERS)


def _with_rest(shown: Table, more: int) -> RenderableType:
    return Group(shown, Text(f"and {more} more (--json has them)", "dim")) if more > 0 else shown


def _budgets(budgets: Sequence[BudgetView]) -> Table:
    shown = table("BUDGET", "IN USE", "", "REFUSED")
    for one in budgets:
        used = ("", "") if one.used_ratio is None else (_bar(one.used_ratio), f"{one.used_ratio:.0%}")
        shown.add_row(Text(one.name), *used, str(one.refused_requests))
    return shown


def _tiers(tiers: Sequence[TierView]) -> Table:
    shown = table("KV STORE", "FILL", "", "BLOCKS", "HIT BLOCKS", "HIT TOKENS")
    for one in tiers:
        fill = f"{one.used_bytes / _GIB:.2f} of {one.capacity_bytes / _GIB:.2f} GiB"
        bar = _bar(one.used_bytes / one.capacity_bytes if one.capacity_bytes else 0.0)
        counts = (one.blocks, one.hit_blocks, one.hit_tokens)
        shown.add_row(Text(f"{one.name} ({one.kind})"), bar, fill, *(f"{count:,}" for count in counts))
    return shown


def _bar(ratio: float) -> Text:
    full = round(_BAR_COLUMNS * min(1.0, max(0.0, ratio)))
    bar = Text("█" * full, "red" if ratio >= 1 else "yellow" if ratio >= _NEARLY else "green")
    return bar.append("░" * (_BAR_COLUMNS - full), "dim")


def _speculation(reports: Sequence[tuple[str, SpeculationReport]]) -> Iterator[Table]:
    """Shows what proposed tokens brought, and by batch size whether steps propose any and what that gains."""
    if not reports:
        return
    shown = table("SPECULATION", "ACCEPTED", "", "TOKENS A STEP", "BY BATCH SIZE")
    for name, one in reports:
        tokens = f"{one.accepted_tokens:,} of {one.proposed_tokens:,}"
        gains = ", ".join(map(_gain, one.gains))
        shown.add_row(name, f"{one.acceptance:.0%}", tokens, f"{one.mean_length:.2f}", Text(gains or "-"))
    yield shown


def _gain(one: BatchGain) -> str:
    standing = "on" if one.proposes else "off"
    return f"{one.batch}: {standing}" + (f" ({one.gain:.2f} x)" if one.gain else "")


def _matrix(pairs: Sequence[tuple[str, PairStatus]]) -> RenderableType:
    """Shows who (columns) fetches KV from whom (rows): the chosen transport, and its GB/s."""
    cells = {(pair.peer, to): _speed(pair) for to, pair in pairs}
    every = list(dict.fromkeys(to for to, _ in pairs))
    columns, peers = every[:_MOST_COLUMNS], sorted({pair.peer for _, pair in pairs})
    shown = table("KV FROM, TO", *columns)
    for peer in peers:
        shown.add_row(Text(peer), *(cells.get((peer, to), "-") for to in columns))
    return _with_rest(shown, len(every) - len(columns))


def _speed(pair: PairStatus) -> str:
    """The speed is that of the requests' own transfers once they moved enough; else that of the probe."""
    is_enough = pair.bytes >= _ENOUGH_BYTES and pair.seconds
    speed = pair.bytes / pair.seconds if is_enough else pair.bytes_per_second
    parts = [f"{pair.transport} {speed / 1e9:.2f} GB/s" if speed else pair.transport]
    return ", ".join([*parts, _amount(pair.bytes)] if pair.bytes else parts)


def _amount(count: int) -> str:
    return f"{count / _MIB:.1f} MiB" if count >= _MIB else f"{count / 1024:.1f} KiB"


def _ways(pairs: Sequence[tuple[str, PairStatus]]) -> Table:
    """Shows each way to fetch KV: what its probe measured, and what requests moved."""
    shown = table("KV PAIR", "TRANSPORT", "", "GB/s", "64 KiB ms", "MOVED", "FAILED", "WHY NOT")
    for worker, pair in pairs:
        shown.add_row(f"{pair.peer or '*'} > {worker}", *_way_cells(pair))
    return shown


def _way_cells(pair: PairStatus) -> Iterator[str]:
    yield pair.transport or "-"
    yield "[green]used[/]" if pair.chosen else "" if pair.breaker == "closed" else f"[red]{pair.breaker}[/]"
    yield f"{pair.bytes_per_second / 1e9:.2f}" if pair.bytes_per_second else "-"
    yield f"{1e3 * pair.small_seconds:.2f}" if pair.small_seconds else "-"
    yield _amount(pair.bytes) if pair.bytes else "-"
    yield str(pair.failures)
    yield escape(pair.reason)


def _lines(now: Snapshot) -> Iterator[str]:
    limit = f" of at most {now.queue_limit_requests}" if now.queue_limit_requests else ""
    yield f"Requests: {now.running_requests} running, {now.queued_requests} queued{limit}"
    yield (
        f"KV: {now.directory_blocks} blocks known, {now.open_leases} leases open "
        f"({now.leased_blocks} blocks), {now.orphan_blocks} orphaned"
    )
    if now.index.followed:
        yield f"Prefix index: {now.index.blocks} blocks, {_PROOFS.get(now.index.proof, now.index.proof)}"
    for problem in now.problems:
        yield f"Problem: {problem}"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
    )
