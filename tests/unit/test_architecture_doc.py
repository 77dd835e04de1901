"""docs/architecture.md names what is there, and leaves no folder of the source out."""

import re
from pathlib import Path

import pytest

PACKAGE = Path("src/llmserve")
NAMED = set(re.findall(r"`([a-z0-9_]+(?:/[a-z0-9_]+)*(?:/|\.py))`", Path("docs/architecture.md").read_text()))


def test_what_it_names_is_there() -> None:
    assert len(NAMED) > 50
    assert [name for name in sorted(NAMED) if not (PACKAGE / name).exists() and not Path(name).exists()] == []


@pytest.mark.parametrize("place", ["", "apiserver/", "router/", "kvstore/", "engines/"])
def test_each_folder_is_named(place: str) -> None:
    """Those at the top, and the parts of what is too large to be found by its own name."""
    folders = {f"{place}{path.parent.name}/" for path in (PACKAGE / place).glob("*/__init__.py")}
    assert folders
    assert {one for one in folders if not any(name.startswith(one) for name in NAMED)} == set()


def test_each_module_at_the_top_is_named() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} - NAMED == {"__init__.py"}
