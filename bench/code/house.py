"""The targets of decision 0024 for a tree: size, folders, names, and the stops of a request and of a token.

All but the stops is read from the source, so it can be said of any tree. The stops are counted on a
simulated cluster that runs the tree's code (hops.py), which takes some ten seconds.
"""

import argparse
import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from bench.table import markdown

MOST_LINES, MOST_MODULES = 53_000, 480
MOST_FILES_OF_A_FOLDER = 20
SMALL_FILE_LINES, MOST_SMALL_SHARE = 40, 0.10
MOST_PARAMETERS = 7
MOST_FUNCTION_LINES = 40
MOST_MODULES_OF_AN_ADMISSION, MOST_FUNCTIONS_OF_A_TOKEN = 7, 18

# Classes whose constructor puts a whole process or part of one together, and may therefore take more.
COMPOSITION_ROOTS = frozenset({"HandoverNode", "RouterRole"})

# Old words of the rename table that mean nothing else: no class, function, module, attribute or argument has
# one of them among its words.
OLD_WORDS = frozenset(
    {
        *("office", "mandate", "grave", "graves", "bury", "buried", "tidied", "placing", "told", "anew"),
        *("hindrance", "hindrances", "whereabouts", "elsewhere", "surroundings", "obey", "obeys", "obeyed"),
        *("trouble", "troubles", "greeting", "keeper", "prologue", "timely"),
    }
)
# Old names whose words have other uses: only the whole name is forbidden.
OLD_NAMES = frozenset(
    {
        *("Part", "Succession", "Leadership", "Standing", "TierBook", "SlowBook", "RuleBook", "Stock"),
        *("Reserving", "Pace", "Paces", "Way", "Seats", "Holding", "Arrival", "Ticket", "HandoverTicket"),
        *("PushCard", "EngineCard", "RequestCard", "ProbeCard", "KvHanding", "Supply", "Proof", "Spread"),
        *("Stand", "PlacedRun", "EarlyLeg", "InForce", "Polls", "Questions"),
        *("carrying", "take_in", "meet", "came", "news"),
    }
)
_PROTO_FIELD = re.compile(r"^\s*(?:repeated |optional )?\S+ (\w+) = \d+;", re.MULTILINE)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")
_GENERATED = ("rpc", "gen")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Constructor:
    owner: str
    parameters: int


class LineKind(StrEnum):
    CODE = "code"
    TEXT = "docstrings and comments"
    IMPORT = "imports"
    BLANK = "blank"


class SourceTree:
    """The Python files below a package's folder, without generated ones, parsed once."""

    def __init__(self, package: Path) -> None:
        paths = sorted(path for path in package.rglob("*.py") if _parents(package, path)[:2] != _GENERATED)
        self.package = package
        self.texts: Mapping[Path, str] = {path: path.read_text() for path in paths}

    @cached_property
    def modules(self) -> Mapping[Path, ast.Module]:
        return {path: ast.parse(text) for path, text in self.texts.items()}

    @property
    def lines(self) -> int:
        return sum(map(_lines, self.texts.values()))

    def folder_sizes(self) -> Counter[str]:
        """The number of files that each folder holds itself, by its path."""
        return Counter(str(path.parent.relative_to(self.package)) for path in self.texts)

    def small_files(self, *, with_signs: bool = True) -> list[Path]:
        """Files under the limit. with_signs: also each `__init__.py`, which names its folder and holds
        nothing that a reader must learn."""
        small = [path for path, text in self.texts.items() if _lines(text) < SMALL_FILE_LINES]
        return [path for path in small if with_signs or path.name != "__init__.py"]

    def lines_by_kind(self) -> Counter[LineKind]:
        return sum((kinds_of_lines(self.texts[path], tree) for path, tree in self.modules.items()), Counter())

    def repeated_classes(self) -> list[str]:
        """Names of module-level classes that occur more than once."""
        names = Counter(
            one.name for tree in self.modules.values() for one in tree.body if isinstance(one, ast.ClassDef)
        )
        return sorted(name for name, count in names.items() if count > 1)

    def large_constructors(self) -> list[Constructor]:
        """Constructors with too many parameters, of classes that are not composition roots."""
        found = [one for tree in self.modules.values() for one in _constructors(tree)]
        return [
            one for one in found if one.parameters > MOST_PARAMETERS and one.owner not in COMPOSITION_ROOTS
        ]

    def long_functions(self) -> list[str]:
        """Functions and methods with too many lines, with their places."""
        found = ((path, one) for path, tree in self.modules.items() for one in ast.walk(tree))
        return [
            f"{path.relative_to(self.package)}: {one.name}"
            for path, one in found
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
            and (one.end_lineno or one.lineno) - one.lineno >= MOST_FUNCTION_LINES
        ]

    def old_names(self) -> Counter[str]:
        """Identifiers that contain an old word of the rename table, and how often each occurs."""
        names = (name for path, tree in self.modules.items() for name in (path.stem, *_identifiers(tree)))
        # Names of fields on the wire are kept: other processes see them.
        protos = (self.package.parents[1] / "proto").rglob("*.proto")
        kept = {field for proto in protos for field in _PROTO_FIELD.findall(proto.read_text())}
        return Counter(name for name in names if is_old(name) and name not in kept)

    def incomplete_docstrings(self) -> int:
        """The number of docstrings that begin with "Of"."""
        nodes = (one for tree in self.modules.values() for one in ast.walk(tree))
        return sum(
            (ast.get_docstring(one) or "").startswith("Of ") for one in nodes if isinstance(one, _DOCUMENTED)
        )


def is_old(name: str) -> bool:
    """Whether a name is an old one of the rename table, or has one of its unmistakable words in it."""
    bare = name.strip("_")
    words = {word.lower() for word in _WORDS.findall(bare)}
    return bare in OLD_NAMES or not OLD_WORDS.isdisjoint(words)


def kinds_of_lines(text: str, tree: ast.Module) -> Counter[LineKind]:
    """The number of lines of each kind. Of a line with code and a comment only the code counts."""
    kinds = [_kind(line) for line in text.splitlines()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            _mark(kinds, node, LineKind.IMPORT)
        elif isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            _mark(kinds, node.body[0], LineKind.TEXT)
    return Counter(kinds)


def _kind(line: str) -> LineKind:
    """What a line is if it belongs neither to a docstring nor to an import."""
    bare = line.strip()
    if not bare:
        return LineKind.BLANK
    return LineKind.TEXT if bare.startswith("#") else LineKind.CODE


def _mark(kinds: list[LineKind], node: ast.stmt, kind: LineKind) -> None:
    for index in range(node.lineno - 1, node.end_lineno or node.lineno):
        if kinds[index] is not LineKind.BLANK:
            kinds[index] = kind


def _parents(package: Path, path: Path) -> tuple[str, ...]:
    return path.relative_to(package).parts


def _lines(text: str) -> int:
    return len(text.splitlines())


def _constructors(tree: ast.Module) -> Iterator[Constructor]:
    for owner in ast.walk(tree):
        if isinstance(owner, ast.ClassDef):
            for one in owner.body:
                if isinstance(one, ast.FunctionDef) and one.name == "__init__":
                    named = one.args
                    parameters = len(named.posonlyargs + named.args + named.kwonlyargs) - 1
                    yield Constructor(owner.name, parameters)


def _identifiers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield name
            case ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name


def source_rows(tree: SourceTree) -> list[tuple[object, ...]]:
    """Each target that the source alone decides: what it is, its value, its limit, and where it is missed."""
    folders, small = tree.folder_sizes().most_common(), tree.small_files()
    bodies = tree.small_files(with_signs=False)
    functions = tree.long_functions()
    constructors, repeated, old = tree.large_constructors(), tree.repeated_classes(), tree.old_names()
    large = [f"{folder} ({count})" for folder, count in folders if count > MOST_FILES_OF_A_FOLDER]
    return [
        ("lines without generated code", tree.lines, f"<= {MOST_LINES}", _listed(tree.lines_by_kind())),
        ("modules", len(tree.texts), f"<= {MOST_MODULES}", ""),
        ("files of the largest folder", folders[0][1], f"<= {MOST_FILES_OF_A_FOLDER}", ", ".join(large)),
        (
            f"files under {SMALL_FILE_LINES} lines",
            f"{len(small)} ({len(small) / len(tree.texts):.1%})",
            f"<= {MOST_SMALL_SHARE:.0%}",
            "",
        ),
        (f"files under {SMALL_FILE_LINES} lines without __init__.py", len(bodies), "", ""),
        (
            f"constructors with more than {MOST_PARAMETERS} parameters",
            len(constructors),
            0,
            ", ".join(f"{one.owner} ({one.parameters})" for one in constructors),
        ),
        (
            f"functions with more than {MOST_FUNCTION_LINES} lines",
            len(functions),
            0,
            ", ".join(functions),
        ),
        ("class names that occur more than once", len(repeated), 0, ", ".join(repeated)),
        ("old names left", len(old), 0, ", ".join(f"{name} ({count})" for name, count in old.most_common())),
        ('docstrings that begin with "Of"', tree.incomplete_docstrings(), 0, ""),
    ]


def _listed(kinds: Counter[LineKind]) -> str:
    return ", ".join(f"{kind} {kinds[kind]}" for kind in LineKind)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tree", type=Path, default=Path(), help="the repository; default: this one")
    parser.add_argument("--without-hops", action="store_true", help="start no cluster")
    parser.add_argument("--list-hops", action="store_true", help="name the modules and functions passed")


def run(tree: Path, without_hops: bool, list_hops: bool) -> str:
    rows = source_rows(SourceTree(tree / "src" / "llmserve"))
    lists: list[str] = []
    if not without_hops:
        from bench.code import hops

        found = hops.count(tree)
        chain, functions = found.admission_chain, found.token_functions
        rows += [
            ("modules of an admission's longest chain", len(chain), f"<= {MOST_MODULES_OF_AN_ADMISSION}", ""),
            ("modules that an admission touches", len(found.admission_modules), "", ""),
            ("functions that a token passes", len(functions), f"<= {MOST_FUNCTIONS_OF_A_TOKEN}", ""),
            ("modules that a token passes", len(found.token_modules), "", ""),
        ]
        if list_hops:
            lists += ["", "An admission's longest chain:", *chain]
            lists += ["", "An admission touches:", *found.admission_modules]
            lists += ["", "A token passes:", *functions]
    return "\n".join([markdown(("target", "now", "limit", "where"), rows), *lists])
