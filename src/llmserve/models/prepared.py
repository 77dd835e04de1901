"""What a prepared model is, and how its preparation reports."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[str], None]
"""Is told in a few words what the preparation does now, whenever that changes."""


def silent(text: str) -> None:
    """A Progress that nobody looks at."""


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """path: a directory with config.json, weights and tokenizer; nobody may write there.
    identity: names by their contents all files from which an engine computes (models/identity.py)."""

    path: Path
    name: str
    identity: str
    source: str
