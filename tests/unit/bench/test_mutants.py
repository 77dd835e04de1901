"""What `python -m bench mutation` changes, and what it leaves alone."""

import ast
from pathlib import Path

import pytest

from bench.code.mutants import mutants, mutated
from bench.code.mutation import tests_of as unit_tests_of


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "module.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = a < b", ["x = a <= b"]),
        ("x = a is not b", ["x = a is b"]),
        ("x = a + b", ["x = a - b"]),
        ("x -= y", ["x += y"]),
        ("x = a and b", ["x = a or b"]),
        ("x = not a", ["x = a"]),
        ("x = 1", ["x = 2"]),
        ("x = 16", ["x = 32"]),
        ("x = True", ["x = False"]),
        ("x = min(a, b)", ["x = max(a, b)"]),
        ("heap.push(a)", ["pass"]),
        ("await heap.push(a)", ["pass"]),
        ("x: int = 0", ["x: int = 1"]),
        ("def f(a=0):\n    return a", ["def f(a=1):\n    return a"]),
    ],
)
def test_one_operator_constant_or_call_is_changed(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = written(tmp_path, text)
    found = [ast.unparse(mutated(path, mutant.number)) for mutant in mutants(path)]
    assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        "Value = int | float",
        "x: int | None",
        '"""Text."""',
        "assert a < b",
        'raise ValueError(f"{1 + 1}")',
        "_log.info('x', 1)",
        "def check_integrity(self):\n    self.check(1)",
        "zip(a, b, strict=True)[a]",
    ],
)
def test_what_decides_nothing_is_left_alone(tmp_path: Path, text: str) -> None:
    assert mutants(written(tmp_path, text)) == []


def test_a_mutant_names_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "def f(a):\n    return a > 5 and a\n")
    assert [mutant.diff().split("module.py")[1] for mutant in mutants(path)] == [
        ":2: return a > 5 and a\n- a > 5 and a\n+ a > 5 or a",
        ":2: return a > 5 and a\n- a > 5\n+ a >= 5",
        ":2: return a > 5 and a\n- 5\n+ 10",
    ]


def test_a_mutant_is_tried_on_the_tests_of_its_package() -> None:
    assert unit_tests_of(Path("src/llmserve/scheduler/turns.py")) == Path("tests/unit/scheduler")
    assert unit_tests_of(Path("src/llmserve/loadgen/load.py")) == Path("tests/unit/loadgen")
    assert unit_tests_of(Path("src/llmserve/traces.py")) == Path("tests/unit")
