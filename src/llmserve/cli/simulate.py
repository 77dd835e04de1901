"""`llmserve simulate`: shows how a cluster would serve a load, without starting anything."""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from llmserve.cli.command import EXIT_OK, Command, add_json, add_manifest, count, positive
from llmserve.cli.screen import screen
from llmserve.config.load import load_manifest
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import DEFAULT_TENANT, TenantId
from llmserve.core.stats import Percentiles
from llmserve.simulate import run
from llmserve.simulate.adapters import with_adapters
from llmserve.simulate.mix import RequestMix, parse_kind, parse_part, tenant_drawer
from llmserve.simulate.report import Goals, SimReport, WorkerLine, shares_svg
from llmserve.simulate.run import Simulation
from llmserve.simulate.shape import ClusterShape, Overrides
from llmserve.traces import TracedRequest, at_speed, read_trace

_ABOUT = """\
Runs a load against the manifest's cluster in virtual time, with the router's own code and simulated engines:
how long would requests wait, who gets which share, how busy is each worker? Nothing is started.

  llmserve simulate -f examples/sim.yaml --mix long:30 short:70 --rate 40 --seconds 120
  llmserve simulate -f examples/sim.yaml --trace mooncake.jsonl --decode 12 --slo ttft=1,itl=0.03

Traces: JSON lines as Mooncake's (timestamp in ms, input_length, output_length, hash_ids), or CSV as Azure's
(TIMESTAMP, ContextTokens, GeneratedTokens). Engines are as fast as engine.sim says, or as the options say.
"""
_SLO = {"ttft": "first_token_seconds", "itl": "gap_seconds", "e2e": "total_seconds"}


def _run(options: argparse.Namespace) -> int:
    manifest = load_manifest(Path(options.file))
    name = options.model or manifest.served[0].served_name
    shape = ClusterShape.of(manifest.for_model(name), _overrides(options))
    goals = _goals(options.slo)
    requests = _requests(options)
    simulation = Simulation(shape, requests, seed=options.seed)
    with watched() as progress:
        simulation.run(progress)
    report = simulation.report(goals)
    if options.plot:
        _plot(simulation, requests, Path(options.plot))
    if options.json:
        json.dump(asdict(report), sys.stdout, indent=2)
        print()
    else:
        show(report, goals)
    return EXIT_OK


def _configure(parser: argparse.ArgumentParser) -> None:
    add_manifest(parser)
    add_json(parser)
    parser.add_argument("--model", metavar="NAME", help="of several in the manifest (default: the first)")
    _configure_load(parser.add_argument_group("the load"))
    _configure_cluster(parser.add_argument_group("in place of what the manifest says"))
    parser.add_argument("--slo", default="", metavar="ttft=S,itl=S,e2e=S", help="what a good request meets")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same result (default: 0)")
    parser.add_argument("--plot", metavar="FILE.svg", help="write the tenants' shares over time")


def _configure_load(load: argparse._ArgumentGroup) -> None:
    load.add_argument("--trace", metavar="FILE", help="requests of a file")
    load.add_argument("--speed", type=positive, default=1.0, help="play the trace so many times as fast")
    load.add_argument(
        "--mix",
        nargs="+",
        default=["short:70", "long:30"],
        metavar="KIND:PART",
        help="short, chat, long or PROMPT/OUTPUT in tokens (default: short:70 long:30)",
    )
    load.add_argument("--rate", type=positive, default=10.0, help="requests per second (default: 10)")
    load.add_argument("--seconds", type=positive, default=60.0, help="of the mix (default: 60)")
    load.add_argument(
        "--shared-prefix",
        type=count,
        default=0,
        metavar="TOKENS",
        help="all prompts of a tenant begin alike",
    )
    load.add_argument("--adapters", type=count, default=0, metavar="N", help="LoRA adapters, drawn at random")
    load.add_argument(
        "--zipf", type=positive, default=1.0, metavar="S", help="of their popularity (default: 1)"
    )
    load.add_argument("--tenants", nargs="+", default=[], metavar="NAME=PART", help="who sends how much")


def _configure_cluster(cluster: argparse._ArgumentGroup) -> None:
    cluster.add_argument("--prefill", type=count, metavar="N", help="prefill workers")
    cluster.add_argument("--decode", type=count, metavar="N", help="decode workers")
    cluster.add_argument("--weights", nargs="+", default=[], metavar="NAME=WEIGHT", help="of tenants")
    cluster.add_argument("--prefill-tokens-per-second", type=positive, metavar="N", help="as measured")
    cluster.add_argument("--decode-step-seconds", type=positive, metavar="S", help="as measured")
    cluster.add_argument("--decode-seconds-per-sequence", type=positive, metavar="S", help="as measured")
    cluster.add_argument("--kv-blocks", type=count, metavar="N", help="of one engine")
    cluster.add_argument(
        "--kv-bytes-per-token", type=positive, default=0.0, metavar="N", help="of all layers"
    )
    cluster.add_argument(
        "--transfer-gbps",
        type=positive,
        default=0.0,
        metavar="N",
        help="between two engines; default: no time",
    )


def _overrides(options: argparse.Namespace) -> Overrides:
    return Overrides(
        prefill_workers=options.prefill,
        decode_workers=options.decode,
        prefill_tokens_per_second=options.prefill_tokens_per_second,
        decode_step_seconds=options.decode_step_seconds,
        decode_seconds_per_sequence=options.decode_seconds_per_sequence,
        kv_blocks=options.kv_blocks,
        weights=tuple(parse_part("--weights", text) for text in options.weights),
        kv_bytes_per_token=options.kv_bytes_per_token,
        transfer_gbps=options.transfer_gbps,
    )


def _goals(text: str) -> Goals:
    given: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, seconds = parse_part("--slo", part)
        if name not in _SLO:
            raise InvalidRequest(f"--slo {part!r}: write one of {', '.join(_SLO)}")
        given[_SLO[name]] = seconds
    return Goals(**given)


def _requests(options: argparse.Namespace) -> list[TracedRequest]:
    rng = random.Random(options.seed)
    tenants = [parse_part("--tenants", text) for text in options.tenants] or [(DEFAULT_TENANT, 1.0)]
    if options.trace:
        requests = at_speed(read_trace(Path(options.trace), tenant_drawer(tenants, rng)), options.speed)
    else:
        kinds = [parse_kind(text) for text in options.mix]
        mix = RequestMix(kinds, tenants, options.rate, options.seconds, options.shared_prefix)
        requests = mix.requests(rng)
    return with_adapters(requests, options.adapters, options.zipf, rng) if options.adapters else requests


def _plot(simulation: Simulation, requests: list[TracedRequest], path: Path) -> None:
    tenants: list[TenantId] = sorted({request.tenant for request in requests})
    seconds = max(2, int(requests[-1].arrived_at)) if requests else 2
    path.write_text(shares_svg(simulation.timeline, tenants, seconds, "share of the tokens computed"))


COMMAND = Command("simulate", "how a load would be served, in virtual time", _ABOUT, _configure, _run)


_MOST_WORKERS = 16


@contextmanager
def watched() -> Iterator[Callable[[run.Progress], None]]:
    """Shows a line on standard error while the simulation runs, if that is a terminal."""
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
    for reason, refused in report.refusals.items():
        console.print(f"Refused: {refused:,} {reason}")
    console.print(f"Prompt tokens from the prefix cache: {report.prefix_hits:.1%}")
    console.print(f"Requests of which one worker computes prompt and answer: {report.on_one_worker:.1%}")
    console.print(f"Requests whose KV is pushed: {report.pushed:.1%}")
    if report.adapters:
        found = ", ".join(f"{tier} {share:.1%}" for tier, share in report.adapters.items())
        console.print(f"Adapters were found in: {found}")
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
    """Shows all workers of a small cluster; of a large one the least, median and most busy of each role."""
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
