"""Writes the dashboards, a JSON file each, and docs/panels.md, which says what each panel shows."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from llmserve.metrics.dashboards import DASHBOARDS, Dashboard
from llmserve.metrics.dashboards.panels import text

_INTRODUCTION = """\
# Panels

<!-- Generated: python -m llmserve.metrics.dashboards --panels docs/panels.md -->

What each panel of the dashboards shows; Grafana shows the same words beside a panel's title. How to get the
dashboards, pictures of them, and the alerts: [dashboards.md](dashboards.md).
"""


def panels_markdown() -> str:
    return "\n".join([_INTRODUCTION, *(line for dashboard in DASHBOARDS for line in _lines(dashboard))])


def _lines(dashboard: Dashboard) -> Iterator[str]:
    yield from (f"## {dashboard.title.partition(': ')[2].capitalize()}\n", f"{dashboard.description}\n")
    for section in dashboard.sections:
        yield from (f"### {section.title}\n", "| Panel | What it shows |", "|---|---|")
        yield from (f"| {panel.title} | {panel.description} |" for panel in section.panels)
        yield ""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m llmserve.metrics.dashboards", description=__doc__)
    parser.add_argument("--write", metavar="DIR", type=Path, help="for the dashboards")
    parser.add_argument("--panels", metavar="FILE", type=Path, help="for the page about the panels")
    options = parser.parse_args(arguments)
    if options.write:
        for dashboard in DASHBOARDS:
            (options.write / f"{dashboard.uid}.json").write_text(text(dashboard))
    if options.panels:
        options.panels.write_text(panels_markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
