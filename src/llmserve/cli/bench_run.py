"""A load on one endpoint."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import uvloop

from llmserve.cli.bench_load import load_of, target_of, tenants_of, ways_of
from llmserve.cli.bench_page import report_page, watched, write_page
from llmserve.cli.command import EXIT_FAILED, EXIT_OK
from llmserve.cli.find import find_cluster
from llmserve.cli.screen import screen
from llmserve.loadgen.endpoint import base_url, only_model
from llmserve.loadgen.kinds import parse_weight
from llmserve.loadgen.load import Load
from llmserve.loadgen.page import page
from llmserve.loadgen.report import Slo, make_report
from llmserve.loadgen.run import Outcome, run_load


def run(options: argparse.Namespace) -> int:
    slo = Slo.parse(options.slo)
    weights = dict(parse_weight(text) for text in options.weights)
    load = load_of(options)
    url = base_url(options.url) if options.url else find_cluster(options).state.base_urls[0]
    outcome = uvloop.run(_outcome(options, load, url))
    report = make_report(outcome.records, outcome.about, slo, weights)
    if options.html:
        write_page(Path(options.html), page(report, outcome.records))
    if options.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        screen().print(report_page(report))
    return EXIT_OK if report.served else EXIT_FAILED


async def _outcome(options: argparse.Namespace, load: Load, url: str) -> Outcome:
    model = options.model or await only_model(url, tenants_of(options)[0].key)
    return await run_load(load, target_of(options, url, model), ways_of(options), watched)
