"""What goes wrong in trials: modules and packages that are not what they should be."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

PretendNixl = Callable[[str], None]
PretendModule = Callable[[str], str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where child processes look for modules first."""
    shims = tmp_path / "shims"
    shims.mkdir()
    others = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(shims), others))))
    return shims


@pytest.fixture
def pretend_nixl(folder: Path) -> PretendNixl:
    """Gives child processes another nixl: importing it runs the given code."""

    def pretend(code: str) -> None:
        (folder / "nixl").mkdir()
        (folder / "nixl" / "__init__.py").write_text("")
        (folder / "nixl" / "_api.py").write_text(code)

    return pretend


@pytest.fixture
def pretend_trial(folder: Path) -> PretendModule:
    """Something to run instead of a trial: from its code to its name."""

    def pretend(code: str) -> str:
        (folder / "pretended_trial.py").write_text(code)
        return "pretended_trial"

    return pretend
