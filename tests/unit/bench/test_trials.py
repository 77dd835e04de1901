"""How `python -m bench mutation` tries mutants: in place where it can, else by another import."""

import sys
from pathlib import Path

import pytest

from bench.code.mutants import Mutant, mutants
from bench.code.trials import Verdict, changed_function, try_on_folder

SOURCE = """\
LIMIT = 5
class Gate:
    def is_open(self, count: int) -> bool:
        return count < LIMIT
    def unseen(self) -> int:
        return 7
def pairs(values: list[int]) -> list[int]:
    def doubled(value: int) -> int:
        return value + value
    return [doubled(value) for value in values]
def endless(value: int) -> int:
    while value > 0:
        value -= 1
    return value
"""
TESTS = """\
from gates import Gate, endless, pairs
def test_the_gate_is_open_below_its_limit() -> None:
    assert Gate().is_open(4)
    assert not Gate().is_open(5)
def test_values_are_doubled() -> None:
    assert pairs([2, 3]) == [4, 6]
def test_it_ends() -> None:
    assert endless(3) == 0
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in `src`, whose tests are in `tests`."""
    for folder, name, text in (("src", "gates.py", SOURCE), ("tests", "test_gates.py", TESTS)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path / "src" / "gates.py"


def of_line(source: Path, line: int) -> list[Mutant]:
    return [mutant for mutant in mutants(source) if mutant.line == line]


@pytest.mark.parametrize(
    ("line", "name"), [(1, None), (4, "Gate.is_open"), (6, "Gate.unseen"), (9, "pairs"), (13, "endless")]
)
def test_the_changed_function_is_the_outermost_one(source: Path, line: int, name: str | None) -> None:
    found = [changed_function(mutant) for mutant in of_line(source, line)]
    assert [code and code.co_qualname for code in found] == [name] * len(found)


def test_a_mutant_dies_when_a_test_fails_and_survives_when_no_test_calls_it(source: Path) -> None:
    tried = [mutant for line in (1, 4, 6, 9) for mutant in of_line(source, line)]
    trials = try_on_folder(source.parents[1] / "tests", tried, jobs=2)
    assert {trial.mutant.line: trial.verdict for trial in trials} == {
        1: Verdict.KILLED,
        4: Verdict.KILLED,
        6: Verdict.SURVIVED,
        9: Verdict.KILLED,
    }


def test_an_endless_mutant_is_killed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.code.trials._SLACK_SECONDS", 0.2)
    (endless,) = [mutant for mutant in of_line(source, 13) if mutant.after == "value += 1"]
    (trial,) = try_on_folder(source.parents[1] / "tests", [endless], jobs=1)
    assert trial.verdict is Verdict.KILLED


def test_tests_that_fail_without_a_mutant_say_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-W error -o asyncio_default_fixture_loop_scope=function")
    (source.parents[1] / "tests" / "test_first.py").write_text(
        "def test_wrong() -> None:\n    assert False\n"
    )
    with pytest.raises(SystemExit, match=r"fails without a mutant: .*test_wrong"):
        try_on_folder(source.parents[1] / "tests", of_line(source, 4), jobs=1)
