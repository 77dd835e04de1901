"""The report of a simulation on the screen."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from llmserve.cli.screen import screen
from llmserve.core.stats import Percentiles
from llmserve.simulate import run
from llmserve.simulate.report import Goals, SimReport, WorkerLine

_MOST_WORKERS = 16


@contextmanager
def watched() -> Iterator[Callable[[run.Progress], None]]:
    """A line on standard error while the simulation runs, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("simulating", total=None)

        def update(now: run.Progress) -> None:
            text = f"{now.now:,.0f} s simulated, {now.ended:,} of {now.of:,} requests ended"
            bar.update(task, description=text, completed=now.ended, total=now.of)

        yield update


def show(report: SimReport, goals: Goals) -> None:
    console = screen()
    console.print(
        f"{report.served:,} of {report.requests:,} requests served in {report.seconds:,.1f} s: "
        f"{report.requests_per_second:,.1f} requests/s, "
        f"{report.output_tokens_per_second:,.0f} output tokens/s"
    )
    if goals != Goals():
        console.print(f"Within the goals: {report.good:,} requests, {report.good_per_second:,.2f} a second")
    for reason, count in report.refusals.items():
        console.print(f"Refused: {count:,} {reason}")
    console.print(f"Prompt tokens from the prefix cache: {report.prefix_hits:.1%}")
    console.print(f"Requests of which one worker computes prompt and answer: {report.on_one_worker:.1%}")
    console.print(_fairness(report))
    console.print(_times(report))
    console.print(_tenants(report))
    console.print(_workers(report.workers))


def _fairness(report: SimReport) -> str:
    if report.jain is None or len(report.tenants) < 2:
        return "Fairness: there was no second in which all of several tenants waited"
    return (
        f"Jain index: {report.jain:.4f}, over the {report.contended_seconds:,} s in which all tenants waited"
    )


def _times(report: SimReport) -> Table:
    table = Table("Seconds", "mean", "p50", "p90", "p99", box=None, pad_edge=False)
    for name, spread in (
        ("in the queue", report.queue),
        ("to the first token", report.first_token),
        ("between tokens", report.gaps),
        ("in all", report.total),
    ):
        table.add_row(name, *_texts(spread))
    return table


def _texts(spread: Percentiles) -> list[str]:
    return [f"{value:.3f}" for value in (spread.mean, spread.p50, spread.p90, spread.p99)]


def _tenants(report: SimReport) -> Table:
    headings = ("Tenant", "weight", "served", "refused", "share", "first token p50", "p99", "in all p99")
    table = Table(*headings, box=None, pad_edge=False)
    for line in report.tenants:
        share = f"{line.share:.1%}" if report.contended_seconds else "-"
        seconds = (line.first_token.p50, line.first_token.p99, line.total.p99)
        texts = (f"{value:.3f}" for value in seconds)
        table.add_row(line.tenant, f"{line.weight:g}", f"{line.served:,}", f"{line.refused:,}", share, *texts)
    return table


def _workers(workers: Sequence[WorkerLine]) -> Table:
    """All of a small cluster; of a large one, the mean and the extremes of each role."""
    table = Table("Worker", "requests", "busy", "KV mean", "KV most", "preempted", box=None, pad_edge=False)
    for name, line in _chosen(workers):
        table.add_row(
            name,
            f"{line.requests:,}",
            f"{line.busy:.1%}",
            f"{line.kv_used_mean:.1%}",
            f"{line.kv_used_most:.1%}",
            f"{line.preemptions:,}",
        )
    return table


def _chosen(workers: Sequence[WorkerLine]) -> list[tuple[str, WorkerLine]]:
    if len(workers) <= _MOST_WORKERS:
        return [(line.worker, line) for line in workers]
    chosen: list[tuple[str, WorkerLine]] = []
    for role in dict.fromkeys(line.worker.partition("-")[0] for line in workers):
        lines = sorted((w for w in workers if w.worker.partition("-")[0] == role), key=lambda w: w.busy)
        for word, line in (("least", lines[0]), ("median", lines[len(lines) // 2]), ("most", lines[-1])):
            chosen.append((f"{line.worker} ({word} busy of {len(lines)})", line))
    return chosen
