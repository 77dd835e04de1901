"""Aggregated against disaggregated, from one manifest, in turns."""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import uvloop
from rich.console import Console

from llmserve.cli.bench_cluster import Shapes, running, shapes_of
from llmserve.cli.bench_load import load_of, target_of, ways_of
from llmserve.cli.bench_options import AGGREGATED, DISAGGREGATED
from llmserve.cli.bench_page import contrast_page, watched, write_page
from llmserve.cli.command import EXIT_FAILED, EXIT_OK
from llmserve.cli.screen import screen
from llmserve.loadgen.comparison import Comparison
from llmserve.loadgen.comparison_page import comparison_page
from llmserve.loadgen.contrast import Round
from llmserve.loadgen.load import Load
from llmserve.loadgen.report import Report, Slo, make_report
from llmserve.loadgen.run import Outcome, run_load


def run(options: argparse.Namespace) -> int:
    slo, load, shapes = Slo.parse(options.slo), load_of(options), shapes_of(Path(options.file))
    base = options.base
    other = DISAGGREGATED if base == AGGREGATED else AGGREGATED
    news = Console(stderr=True, highlight=False)
    rounds: list[Round] = []
    reports: list[dict[str, Report]] = []
    for number in range(options.rounds):
        names = (base, other) if number % 2 == 0 else (other, base)
        news.print(f"Round {number + 1} of {options.rounds}: {' then '.join(names)}")
        turns = {name: _turn(options, shapes, name, _of_round(load, number)) for name in names}
        reports.append({name: make_report(one.records, one.about, slo, {}) for name, one in turns.items()})
        rounds.append(_round(turns[base], turns[other], reports[-1][base], reports[-1][other]))
    found = Comparison.of(base, other, rounds, reports)
    if options.html:
        write_page(Path(options.html), comparison_page(found))
    if options.json:
        print(json.dumps(_as_json(found)))
    else:
        _show(found)
    return EXIT_OK if found.contrasts else EXIT_FAILED


def _of_round(load: Load, number: int) -> Load:
    """Other prompts and times in each round, the same for both."""
    return replace(load, seed=load.seed + number)


def _turn(options: argparse.Namespace, shapes: Shapes, name: str, load: Load) -> Outcome:
    """Errors: StartFailed, or Unavailable when it does not answer; KeyboardInterrupt when it was cut."""
    with running(shapes.documents[name], options.ready_timeout) as url:
        target = target_of(options, url, options.model or shapes.model)
        outcome: Outcome = uvloop.run(run_load(load, target, ways_of(options), watched))
    if outcome.is_cut:
        raise KeyboardInterrupt
    return outcome


def _round(base: Outcome, other: Outcome, base_report: Report, other_report: Report) -> Round:
    return Round(base.records, other.records, base_report.seconds, other_report.seconds)


def _as_json(found: Comparison) -> dict[str, object]:
    return {
        "base": found.base,
        "other": found.other,
        "verdict": found.verdict,
        "contrasts": [{**asdict(one), "finding": one.finding} for one in found.contrasts],
        "rounds": [{name: asdict(report) for name, report in one.items()} for one in found.reports],
    }


def _show(found: Comparison) -> None:
    page = screen()
    page.print(f"Load: {found.about.load}, {len(found.rounds)} rounds", markup=False)
    page.print(contrast_page(found.contrasts, found.base, found.other))
    for name in found.names:
        page.print(found.served_words(name), markup=False)
    for note in found.notes:
        page.print(f"Note: {note}", style="yellow", markup=False)
    page.print(found.verdict, style="bold", markup=False)
