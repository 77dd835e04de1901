"""The recording and alert rules of Prometheus: llmserve.rules.yml beside this file.

python -m llmserve.metrics.rules --write deploy/prometheus
"""

from importlib.resources import files
from typing import Any

import yaml

RULES_FILE = "llmserve.rules.yml"


def rules_text() -> str:
    """As Prometheus reads it."""
    return files(__name__).joinpath(RULES_FILE).read_text()


def rule_groups() -> list[dict[str, Any]]:
    """Each has a name and its rules."""
    groups: list[dict[str, Any]] = yaml.safe_load(rules_text())["groups"]
    return groups
