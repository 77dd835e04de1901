"""`llmserve status`: what runs, how it is, and what it does."""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llmserve.cli import k8s
from llmserve.cli.ask import HEALTHY, ask
from llmserve.cli.command import EXIT_FAILED, EXIT_OK, Command, add_json
from llmserve.cli.find import add_cluster, find_cluster
from llmserve.cli.screen import screen
from llmserve.cli.snapshot import RoleView, Snapshot, WorkerView, snapshot
from llmserve.core.pairs import PairStatus

_MIB = 1 << 20
_GIB = 1 << 30
_PROOFS = {
    "unproven": "no prompt was looked for yet",
    "matches": "prompts are found again",
    "differs": "prompts are NOT found again",
}

_ABOUT = """\
Shows the cluster that runs here (or of -f, --run-dir): each process with its health; for workers also their
requests, KV blocks and the transport that brought KV; queue, leases, and orphaned blocks (0, or a bug). The
exit code is 0 when all is well and 1 otherwise, so scripts can ask too.

Columns: REQUESTS running+waiting; BLOCKS in use/all, and how many hold reusable prefixes; KV IN is what the
worker fetched from others, over which transport, and how many attempts failed. The second table has a line
for each way to fetch KV: its measured speed, what came that way, and why it is out of use if it is. Where
there is a KV store, a line for each storage class says how full it is, and how many blocks were not computed
because it had them (`llmserve kv stats` has more).

With --mode k8s it shows the workloads of the cluster in Kubernetes, and what keeps their pods from running.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)
    k8s.add_mode(parser)
    add_json(parser)
    parser.add_argument("-w", "--watch", action="store_true", help="go on showing it, until Ctrl-C")
    parser.add_argument(
        "--every", type=_seconds, default=1.0, metavar="SECONDS", help="with --watch: how often (default: 1)"
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError("must be 0.1 to 3600 seconds")
    return value


def _run(options: argparse.Namespace) -> int:
    manifest = k8s.asked_for_k8s(options)
    if manifest is not None:
        return k8s.status(options, manifest)
    if options.watch:
        return _watch(options)
    now = _look(options)
    if options.json:
        print(json.dumps(_as_json(now), indent=2))
    else:
        screen().print(page(now))
    return EXIT_FAILED if now.problems else EXIT_OK


def _watch(options: argparse.Namespace) -> int:
    """With --json a line for each look. Ends when the cluster does."""
    if options.json:
        while True:
            print(json.dumps(_as_json(_look(options))), flush=True)
            time.sleep(options.every)
    with Live(page(_look(options)), auto_refresh=False, console=screen()) as live:
        while True:
            time.sleep(options.every)
            live.update(page(_look(options)), refresh=True)


def _look(options: argparse.Namespace) -> Snapshot:
    """Errors: Unavailable when no cluster runs."""
    state = find_cluster(options).state
    return snapshot(state, asyncio.run(ask(state.roles)), time.time())


def _as_json(now: Snapshot) -> dict[str, object]:
    return {"healthy": not now.problems, **asdict(now)}


def page(now: Snapshot) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("PROCESS", "HEALTH", "PID", "RESTARTS", "ADDRESS", "REQUESTS", "BLOCKS", "KV IN"):
        table.add_column(title, overflow="fold")
    several_routers = sum(role.role == "router" for role in now.roles) > 1
    for role in now.roles:
        table.add_row(*_cells(role, several_routers))
    pairs = [(role.name, pair) for role in now.roles if role.worker for pair in role.worker.pairs]
    matrix: list[RenderableType] = [_matrix(pairs), ""] if pairs else []
    return Group(Text.from_markup(_headline(now)), "", table, "", *matrix, *map(Text, _lines(now)))


def _matrix(pairs: list[tuple[str, PairStatus]]) -> Table:
    """Who fetches KV from whom, and how. The chosen way of each pair is marked."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("KV PAIR", "TRANSPORT", "", "GB/s", "64 KiB ms", "MOVED", "FAILED", "WHY NOT"):
        table.add_column(title, overflow="fold")
    for worker, pair in pairs:
        table.add_row(f"{pair.peer or '*'} > {worker}", *_pair_cells(pair))
    return table


def _pair_cells(pair: PairStatus) -> Iterator[str]:
    yield pair.transport or "-"
    yield "[green]used[/]" if pair.chosen else "" if pair.breaker == "closed" else f"[red]{pair.breaker}[/]"
    yield f"{pair.bytes_per_second / 1e9:.2f}" if pair.bytes_per_second else "-"
    yield f"{1e3 * pair.small_seconds:.2f}" if pair.small_seconds else "-"
    yield f"{pair.bytes / _MIB:.1f} MiB" if pair.bytes else "-"
    yield str(pair.failures)
    yield escape(pair.reason)


def _headline(now: Snapshot) -> str:
    colour = "red" if now.problems else "green"
    return (
        f"[bold]{escape(now.cluster)}[/] [{colour}]{now.stand}[/] for {_duration(now.uptime_seconds)}, "
        f"serves {escape(now.model)} at {', '.join(f'{url}/v1' for url in now.base_urls)}"
    )


def _cells(role: RoleView, several_routers: bool) -> Iterator[str]:
    yield role.name
    is_well = role.health == HEALTHY and (role.worker is None or role.worker.available)
    shown = HEALTHY if role.health == HEALTHY else role.stand
    if role.worker is not None and role.worker.draining:
        shown = "draining"
    standing = ", leads" if role.leads else ", stands by" if role.role == "router" else ""
    yield f"[{'green' if is_well else 'red'}]{shown}[/]{standing if several_routers else ''}"
    yield str(role.pid or "-")
    yield str(role.restarts)
    yield role.address
    yield from _worker_cells(role.worker) if role.worker else ("", "", "")


def _worker_cells(worker: WorkerView) -> Iterator[str]:
    yield f"{worker.running_requests}+{worker.waiting_requests}"
    leased = f", {worker.leased_blocks} leased" if worker.leased_blocks else ""
    yield f"{worker.used_blocks}/{worker.total_blocks}, {worker.stored_blocks} reusable{leased}"
    if not worker.transferred_bytes and not worker.transfer_failures:
        yield f"- ({', '.join(worker.transports)})"
        return
    failed = f", {worker.transfer_failures} failed" if worker.transfer_failures else ""
    yield f"{worker.last_transport} {worker.transferred_bytes / _MIB:.1f} MiB{failed}"


def _lines(now: Snapshot) -> Iterator[str]:
    yield f"Requests: {now.running_requests} running, {now.queued_requests} queued"
    yield (
        f"KV: {now.directory_blocks} blocks known, {now.open_leases} leases open "
        f"({now.leased_blocks} blocks), {now.orphan_blocks} orphaned"
    )
    if now.index.followed:
        yield f"Prefix index: {now.index.blocks} blocks, {_PROOFS.get(now.index.proof, now.index.proof)}"
    for tier in now.tiers:
        yield (
            f"KV store {tier.name} ({tier.kind}): {tier.used_bytes / _GIB:.2f} of "
            f"{tier.capacity_bytes / _GIB:.2f} GiB in {tier.blocks} blocks, {tier.hit_blocks} blocks hit"
            + (f" ({tier.hit_tokens} tokens)" if tier.hit_tokens else "")
        )
    for problem in now.problems:
        yield f"Problem: {problem}"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
    )


COMMAND = Command("status", "show roles, health, load, KV blocks, transports", _ABOUT, _configure, _run)
