"""Aggregated against disaggregated, from one manifest, in turns."""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import uvloop
from rich.console import Console

from llmserve.cli.bench_cluster import Shapes, running, shapes_of
from llmserve.cli.bench_load import load_of, target_of, ways_of
from llmserve.cli.bench_options import AGGREGATED, DISAGGREGATED
from llmserve.cli.bench_page import contrast_page, watched
from llmserve.cli.command import EXIT_FAILED, EXIT_OK
from llmserve.cli.screen import screen
from llmserve.loadgen.contrast import Contrast, Round, contrasts, verdict
from llmserve.loadgen.load import Load
from llmserve.loadgen.report import About, Report, Slo, make_report
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
    found = contrasts(rounds)
    said = verdict(found, base, other, len(rounds))
    _show(options, base, other, found, reports, said)
    return EXIT_OK if found else EXIT_FAILED


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


def _show(
    options: argparse.Namespace,
    base: str,
    other: str,
    found: list[Contrast],
    reports: list[dict[str, Report]],
    said: str,
) -> None:
    if options.json:
        lines = [{**asdict(one), "finding": one.finding} for one in found]
        rounds = [{name: asdict(report) for name, report in one.items()} for one in reports]
        json.dump(
            {"base": base, "other": other, "verdict": said, "contrasts": lines, "rounds": rounds}, sys.stdout
        )
        print()
        return
    page = screen()
    page.print(f"Load: {_about(reports).load}, {len(reports)} rounds", markup=False)
    page.print(contrast_page(found, base, other))
    for name in (base, other):
        page.print(_served(name, [one[name] for one in reports]), markup=False)
    for note in dict.fromkeys(note for one in reports for report in one.values() for note in report.notes):
        page.print(f"Note: {note}", style="yellow", markup=False)
    page.print(said, style="bold")


def _about(reports: list[dict[str, Report]]) -> About:
    first: Mapping[str, Report] = reports[0]
    return next(iter(first.values())).about


def _served(name: str, reports: list[Report]) -> str:
    served, sent = sum(one.served for one in reports), sum(one.requests for one in reports)
    good = f", {sum(one.good for one in reports)} within the limits" if reports[0].slo.asks else ""
    kinds = ", ".join(sorted({line.label for one in reports for line in one.failures}))
    return f"{name}: {served} of {sent} requests served{good}{f' (failed: {kinds})' if kinds else ''}"
