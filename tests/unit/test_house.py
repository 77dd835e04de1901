"""The house keeps its order: names, folders, constructors. `python -m bench house` has the figures."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from bench.code.house import MOST_FILES_OF_A_FOLDER, LineKind, SourceTree, is_old, kinds_of_lines

PACKAGE = Path("src/llmserve")


@pytest.fixture(scope="module")
def tree() -> SourceTree:
    return SourceTree(PACKAGE)


def test_each_class_name_occurs_once(tree: SourceTree) -> None:
    assert tree.repeated_classes() == []


def test_no_old_word_is_left(tree: SourceTree) -> None:
    assert not tree.old_names()


def test_no_folder_is_crowded(tree: SourceTree) -> None:
    assert [name for name, files in tree.folder_sizes().items() if files > MOST_FILES_OF_A_FOLDER] == []


def test_constructors_are_small_outside_composition_roots(tree: SourceTree) -> None:
    assert tree.large_constructors() == []


def test_functions_are_small(tree: SourceTree) -> None:
    assert tree.long_functions() == []


def test_docstrings_are_sentences(tree: SourceTree) -> None:
    assert tree.incomplete_docstrings() == 0


def test_no_conftest_of_unit_tests_imports_vllm() -> None:
    """What tests/unit/conftest.py checks of the files of tests, which are imported later."""
    names = [".".join(path.with_suffix("").parts) for path in Path("tests/unit").rglob("conftest.py")]
    code = f"import sys, {', '.join(names)}; sys.exit('vllm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_test_is_skipped_for_an_error_that_it_meets() -> None:
    """A test is skipped for what a machine lacks, which can be known beforehand. An error may be a defect."""
    texts = {path: path.read_text() for path in Path("tests").rglob("*.py")}
    trees = {path: ast.parse(text) for path, text in texts.items() if "pytest.skip(" in text}
    assert len(trees) > 1
    found = [
        f"{path}:{node.lineno}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and "pytest.skip(" in ast.unparse(node)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RouterOffice", True),
        ("_on_trouble", True),
        ("GRAVES", True),
        ("Part", True),
        ("_Part", True),
        ("part", False),
        ("LeaderTerm", False),
        ("gravel", False),
    ],
)
def test_old_words_are_found_within_names(name: str, expected: bool) -> None:
    assert is_old(name) is expected


def test_what_is_counted(tmp_path: Path) -> None:
    package = tmp_path / "src" / "llmserve"
    (package / "rpc" / "gen").mkdir(parents=True)
    (tmp_path / "proto").mkdir()
    (tmp_path / "proto" / "a.proto").write_text("message A {\n  repeated bool anew = 4; // said\n}\n")
    (package / "rpc" / "gen" / "a.py").write_text("class One: ...\n")
    (package / "a.py").write_text("class One: ...\nclass Two:\n    def __init__(self, a, b): ...\n")
    (package / "b.py").write_text('class One:\n    """Of a thing."""\n    def tidied(self): self.anew = 1\n')
    (package / "c.py").write_text("class Big:\n    def __init__(self, a, b, c, d, e, f, g, *, h): ...\n")
    tree = SourceTree(package)
    assert (tree.lines, len(tree.texts), len(tree.small_files())) == (8, 3, 3)
    assert tree.repeated_classes() == ["One"]
    assert tree.old_names() == {"tidied": 1}
    assert [(one.owner, one.parameters) for one in tree.large_constructors()] == [("Big", 8)]
    assert tree.incomplete_docstrings() == 1
    assert tree.folder_sizes() == {".": 3}


def test_a_folders_sign_is_a_small_file_that_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text('"""A folder."""\n')
    (tmp_path / "small.py").write_text("x = 1\n" * 39)
    (tmp_path / "large.py").write_text("x = 1\n" * 40)
    tree = SourceTree(tmp_path)
    assert [path.name for path in tree.small_files()] == ["__init__.py", "small.py"]
    assert [path.name for path in tree.small_files(with_signs=False)] == ["small.py"]
    assert tree.lines_by_kind() == {LineKind.TEXT: 1, LineKind.CODE: 79}


def test_a_function_is_counted_with_its_first_line(tmp_path: Path) -> None:
    body = "    pass\n"
    (tmp_path / "a.py").write_text(f"def small():\n{body * 39}async def large():\n{body * 40}")
    assert SourceTree(tmp_path).long_functions() == ["a.py: large"]


@pytest.mark.parametrize(
    ("text", "code", "texts", "imports", "blank"),
    [
        ('"""One.\n\nTwo.\n"""\n', 0, 3, 0, 1),
        ("# why\nx = 1  # how\n\n", 1, 1, 0, 1),
        ("from a import (\n    b,\n    c,\n)\n", 0, 0, 4, 0),
        ('def f():\n    """What."""\n    import a\n    return "text"\n', 2, 1, 1, 0),
        ('x = """\n# no comment\n"""\n', 2, 1, 0, 0),
        ('async def f():\n    """What."""\n\n\nclass A:\n    """What."""\n', 2, 2, 0, 2),
    ],
)
def test_each_line_is_of_one_kind(text: str, code: int, texts: int, imports: int, blank: int) -> None:
    kinds = kinds_of_lines(text, ast.parse(text))
    assert [kinds[kind] for kind in LineKind] == [code, texts, imports, blank]
