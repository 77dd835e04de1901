"""Writes the dashboards, a JSON file each."""

import argparse
import sys
from pathlib import Path

from llmserve.metrics.dashboards import DASHBOARDS
from llmserve.metrics.dashboards.panels import text


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m llmserve.metrics.dashboards", description=__doc__)
    parser.add_argument("--write", metavar="DIR", type=Path, required=True)
    folder = parser.parse_args(arguments).write
    for dashboard in DASHBOARDS:
        (folder / f"{dashboard.uid}.json").write_text(text(dashboard))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
