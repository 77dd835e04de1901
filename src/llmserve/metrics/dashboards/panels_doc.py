"""docs/panels.md: each panel of each dashboard, and what to see in it.

python -m llmserve.metrics.dashboards.panels_doc --write docs/panels.md
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from llmserve.metrics.dashboards import DASHBOARDS, Dashboard

_INTRODUCTION = """\
# Panels

<!-- Generated: python -m llmserve.metrics.dashboards.panels_doc --write docs/panels.md -->

What each panel of the dashboards shows; Grafana shows the same words beside a panel's title. How to get the
dashboards, pictures of them, and the alerts: [dashboards.md](dashboards.md).
"""


def markdown() -> str:
    return "\n".join([_INTRODUCTION, *(line for dashboard in DASHBOARDS for line in _lines(dashboard))])


def _lines(dashboard: Dashboard) -> Iterator[str]:
    yield from (f"## {dashboard.title.partition(': ')[2].capitalize()}\n", f"{dashboard.description}\n")
    for section in dashboard.sections:
        yield from (f"### {section.title}\n", "| Panel | What it shows |", "|---|---|")
        yield from (f"| {panel.title} | {panel.description} |" for panel in section.panels)
        yield ""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llmserve.metrics.dashboards.panels_doc", description=__doc__
    )
    parser.add_argument("--write", metavar="FILE", type=Path, required=True)
    parser.parse_args(arguments).write.write_text(markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
