"""The house keeps its order: names, folders, constructors. `python -m bench house` has the figures."""

from pathlib import Path

import pytest

from bench.code.house import MOST_FILES_OF_A_FOLDER, SourceTree, is_old

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


def test_docstrings_are_sentences(tree: SourceTree) -> None:
    assert tree.incomplete_docstrings() == 0


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
