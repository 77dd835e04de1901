"""Writes the rules, for those who run Prometheus without Kubernetes."""

import argparse
import sys
from pathlib import Path

from llmserve.metrics.rules import RULES_FILE, rules_text


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m llmserve.metrics.rules", description=__doc__)
    parser.add_argument("--write", metavar="DIR", type=Path, required=True)
    (parser.parse_args(arguments).write / RULES_FILE).write_text(rules_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
