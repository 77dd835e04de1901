"""What a prepared model is, and how its preparation reports."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[str], None]
"""Is told in a few words what the preparation does now, whenever that changes."""


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """path: a directory with config.json, weights and tokenizer; nobody may write there.
    revision: names the weights by their contents (a commit of the hub, or a SHA-256)."""

    path: Path
    name: str
    revision: str
    source: str
