"""The recording and alert rules of Prometheus: llmserve.rules.yml beside this file.

`python -m llmserve.metrics.rules --write deploy/prometheus` writes them for those who run Prometheus without
Kubernetes.
"""

import argparse
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

RULES_FILE = "llmserve.rules.yml"


def rules_text() -> str:
    """The rules as Prometheus reads them."""
    return files("llmserve.metrics").joinpath(RULES_FILE).read_text()


def rule_groups() -> list[dict[str, Any]]:
    """The groups of rules; each has a name and its rules."""
    groups: list[dict[str, Any]] = yaml.safe_load(rules_text())["groups"]
    return groups


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m llmserve.metrics.rules", description=__doc__)
    parser.add_argument("--write", metavar="DIR", type=Path, required=True)
    (parser.parse_args(arguments).write / RULES_FILE).write_text(rules_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
