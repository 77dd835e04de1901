"""Shows the progress and the report of a load on the terminal."""

import asyncio
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmserve.core.tasks import running_beside
from llmserve.loadgen.comparison import ComparisonFinding, Contrast
from llmserve.loadgen.comparison_page import figure_cells
from llmserve.loadgen.drive import Drive
from llmserve.loadgen.page import SPREAD_HEADS, spread_cells
from llmserve.loadgen.report import Group as RequestGroup
from llmserve.loadgen.report import LoadReport

_EVERY_SECONDS = 0.5
_RECENT = 50
_COLOURS = {ComparisonFinding.BETTER: "green", ComparisonFinding.WORSE: "red", ComparisonFinding.SAME: "dim"}


@asynccontextmanager
async def watched(drive: Drive) -> AsyncIterator[None]:
    """Shows one line on stderr while the load runs, if that is a terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        async with running_beside("bench.progress", _refresh(drive, live)):
            yield


async def _refresh(drive: Drive, live: Live) -> None:
    while True:
        live.update(Text(progress(drive)), refresh=True)
        await asyncio.sleep(_EVERY_SECONDS)


def progress(drive: Drive) -> str:
    now, recent = drive.watch.now(), [one for one in drive.records[-_RECENT:] if one.served]
    failed = drive.failed
    parts = [
        f"{now:5.0f} s",
        f"{len(drive.records)} ended",
        f"{drive.running} running",
        f"{drive.output_tokens / now:.0f} tokens/s" if now > 1 else "",
        f"ttft {1000 * statistics.median(one.ttft for one in recent):.0f} ms" if recent else "",
        f"{failed} failed" if failed else "",
    ]
    return "   ".join(filter(None, parts))


def report_page(report: LoadReport) -> RenderableType:
    about = report.about
    parts: list[RenderableType] = [
        Text(f"{about.model} at {about.url}", style="bold"),
        Text(f"Load: {about.load}; prompts: {about.prompts}; seed {about.seed}"),
        Text(_totals(report)),
        *(Text(line) for line in (_good(report), _fair(report)) if line),
        Text(""),
        _spreads(report),
    ]
    if len(report.kinds) > 1:
        parts += ["", _groups("KIND", report.kinds)]
    if len(report.tenants) > 1:
        parts += ["", _groups("TENANT", report.tenants)]
    if report.adapters:
        parts += ["", _groups("ADAPTER", report.adapters)]
    parts += [Text(f"Failed: {one.count} x {one.label}: {one.message}", "red") for one in report.failures]
    parts += [Text(f"Note: {note}", "yellow") for note in report.notes]
    return Group(*parts)


def _totals(report: LoadReport) -> str:
    return (
        f"{report.served} of {report.requests} requests served in {report.seconds:.1f} s: "
        f"{report.requests_per_second:.2f}/s, {report.output_tokens_per_second:.1f} output tokens/s, "
        f"{report.total_tokens_per_second:.1f} tokens/s; {report.cached_tokens} of {report.prompt_tokens} "
        "prompt tokens were cached"
    )


def _good(report: LoadReport) -> str:
    if not report.slo.asks:
        return ""
    return f"Good: {report.good} of {report.requests} met the limits: {report.good_per_second:.2f} requests/s"


def _fair(report: LoadReport) -> str:
    found = report.fairness
    if len(report.tenants) < 2:
        return ""
    if found.jain is None:
        return "Fairness: in no second did requests of all tenants wait, so shares mean nothing"
    tokens = ", ".join(f"{name} {count}" for name, count in found.tokens.items())
    return (
        f"Fairness: Jain index {found.jain:.3f} of tokens for their weight while all waited "
        f"({found.contended_seconds} s: {tokens})"
    )


def _spreads(report: LoadReport) -> Table:
    table = _table("MILLISECONDS", *SPREAD_HEADS[1:])
    for name, spread in report.spreads.items():
        table.add_row(name, *spread_cells(spread))
    return table


def _groups(title: str, groups: Sequence[RequestGroup]) -> Table:
    table = _table(title, "served", "good", "output tokens", "ttft p50", "ttft p99", "per token", "e2e p50")
    for one in groups:
        times = (one.ttft.p50, one.ttft.p99, one.tpot.mean, one.e2e.p50)
        table.add_row(
            Text(one.name),
            f"{one.served}/{one.requests}",
            str(one.good),
            str(one.output_tokens),
            *(f"{1000 * value:.1f}" for value in times),
        )
    return table


def contrast_page(found: Sequence[Contrast], base: str, other: str) -> Table:
    table = _table("", base, other, "ratio", "95%", "")
    for one in found:
        *cells, finding = figure_cells(one)
        table.add_row(*cells, Text(finding, _COLOURS[one.finding]))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first)
    for title in others:
        table.add_column(title, justify="right")
    return table
