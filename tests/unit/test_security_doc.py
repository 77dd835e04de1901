"""The threat model names tests, and each of them is there."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "security.md"
_FILE = re.compile(r"`((?:[\w/]+/)?(?:test_\w+\.py|\w+\.test\.ts))`")
_FUNCTION = re.compile(r"`(test_\w+)(\.\.\.)?`")


def _lines(*command: str) -> set[str]:
    return set(
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    )


def test_each_file_that_is_named_is_there() -> None:
    there = {f"/{line}" for line in _lines("git", "ls-files", "tests", "ui")}
    named = {f"/{name.removeprefix('tests/')}" for name in _FILE.findall(DOC.read_text())}
    assert len(named) > 40
    assert [name for name in named if not any(path.endswith(name) for path in there)] == []


def test_each_test_that_is_named_is_there() -> None:
    """Some are named by their beginning, with dots after it."""
    found = _lines("git", "grep", "-hoE", r"def test_\w+", "--", "tests")
    defined = {line.removeprefix("def ") for line in found}
    named = _FUNCTION.findall(DOC.read_text())
    assert len(named) > 8
    assert [name for name, cut in named if not cut and name not in defined] == []
    for name, _ in named:
        assert any(one.startswith(name) for one in defined), name
