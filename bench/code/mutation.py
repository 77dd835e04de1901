"""How many mutants of the deciding code unit tests kill: one operator, constant or call is changed at a time.

A mutant lives in the memory of one process, which runs the unit tests of its package and stops at the first
that fails; no file is changed. Tests of the module itself run first, then the others, the fastest first.
"""

import argparse
import ast
import importlib.abc
import importlib.util
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

import pytest

from bench.code.mutants import Mutant, mutants, mutated
from bench.table import markdown

_SOURCE, _TESTS = Path("src/llmserve"), Path("tests/unit")
# The deciding code: folders and files of llmserve; of a folder, what waits for nobody and asks nobody.
DECIDING = ("scheduler", "router", "kvstore/eviction", "core/lease_table.py", "transfer/engine/pair.py")
_IMPURE = ("asyncio", "grpc", "llmserve.rpc", "prometheus_client", "threading")
_WANTED_SHARE = 0.93
# Imported once, before the processes of the mutants branch off. pytest wants to import its plugins itself.
_SHARED_IMPORTS = ("numpy", "grpc.aio", "pydantic", "prometheus_client", "yaml")
_FIRST_RUN_SECONDS = 300.0
_SLACK_SECONDS, _SLOWER = 15.0, 4.0

Durations = Mapping[str, float]  # seconds of each test, by its node id


class Verdict(Enum):
    KILLED = "killed"
    SURVIVED = "survived"


@dataclass(frozen=True, slots=True)
class Trial:
    mutant: Mutant
    verdict: Verdict
    seconds: float

    def describe(self) -> str:
        return f"{self.verdict.value} in {self.seconds:.1f} s: {self.mutant.path}:{self.mutant.line}"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--paths", nargs="+", default=(), help="files and folders of src/llmserve; default: the deciding code"
    )
    parser.add_argument("--sample", type=int, default=120, help="mutants to try, drawn evenly; 0: all")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--list", dest="only_list", action="store_true", help="try none, only list them")


def run(paths: Sequence[str], sample: int, seed: int, jobs: int, only_list: bool) -> str:
    files = [file for path in paths or _existing(DECIDING) for file in deciding_files(path)]
    found = [mutant for file in files for mutant in mutants(file)]
    if 0 < sample < len(found) and not only_list:
        found = random.Random(seed).sample(found, sample)
    print(f"{len(found)} mutants of {len(files)} files", file=sys.stderr)
    if only_list:
        return "\n\n".join(mutant.diff() for mutant in found)
    return _report(try_all(found, jobs))


def _existing(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if (_SOURCE / path).exists():
            yield path
        else:
            print(f"{path} is not there", file=sys.stderr)


def deciding_files(path: str) -> list[Path]:
    """A file as it is; of a folder, those that import nothing that waits or asks somebody."""
    place = _SOURCE / path.removeprefix(f"{_SOURCE}/")
    if place.is_file():
        return [place]
    return [file for file in sorted(place.rglob("*.py")) if not _is_impure(file)]


def _is_impure(file: Path) -> bool:
    names = [name for node in ast.walk(ast.parse(file.read_text())) for name in _imported(node)]
    return any(name == one or name.startswith(f"{one}.") for name in names for one in _IMPURE)


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module


def tests_of(file: Path) -> Path:
    """The unit tests of a source file: its deciding package's, else the nearest folder's that mirrors it."""
    path = file.relative_to(_SOURCE)
    folder = next((Path(one) for one in DECIDING if path.is_relative_to(one)), path.parent)
    return next(_TESTS / one for one in (folder, *folder.parents) if (_TESTS / one).is_dir())


def try_all(found: Sequence[Mutant], jobs: int) -> list[Trial]:
    for name in _SHARED_IMPORTS:
        importlib.import_module(name)
    folders = sorted({tests_of(mutant.path) for mutant in found})
    durations = {folder: _baseline(folder) for folder in folders}
    trials = []
    with ThreadPoolExecutor(jobs) as pool:
        for trial in pool.map(lambda mutant: _try(durations[tests_of(mutant.path)], mutant), found):
            trials.append(trial)
            print(f"{len(trials)}/{len(found)} {trial.describe()}", file=sys.stderr, flush=True)
    return trials


def _baseline(tests: Path) -> Durations:
    """Runs the tests without a mutant: they must pass."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "durations.json"
        if _failed(tests, _Recorder(file), None, _FIRST_RUN_SECONDS):
            raise SystemExit(f"{tests} fails without a mutant")
        durations: Durations = json.loads(file.read_text())
        return durations


def _try(durations: Durations, mutant: Mutant) -> Trial:
    began, limit = time.monotonic(), _SLACK_SECONDS + _SLOWER * sum(durations.values())
    killed = _failed(tests_of(mutant.path), _Order(mutant.path.stem, durations), mutant, limit)
    return Trial(mutant, Verdict.KILLED if killed else Verdict.SURVIVED, time.monotonic() - began)


def _failed(tests: Path, plugin: object, mutant: Mutant | None, seconds: float) -> bool:
    """Runs them in a process of their own. One that takes too long has failed: the mutant made it endless."""
    process = multiprocessing.get_context("fork").Process(target=_run_tests, args=(tests, plugin, mutant))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode != 0


def _run_tests(tests: Path, plugin: object, mutant: Mutant | None) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    if mutant is not None:
        sys.meta_path.insert(0, _MutantFinder(mutant))
    # Runs side by side must not share what they write, such as the cache.
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    os._exit(int(pytest.main([*options, str(tests)], plugins=[plugin])))


class _Recorder:
    """A pytest plugin that writes how long each test took."""

    def __init__(self, file: Path) -> None:
        self._file, self._seconds = file, dict[str, float]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        self._file.write_text(json.dumps(self._seconds))


class _Order:
    """A pytest plugin that runs the tests of a module first, then the fastest."""

    def __init__(self, module: str, durations: Durations) -> None:
        self._own, self._durations = f"test_{module}.py", durations

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: (item.path.name != self._own, self._durations.get(item.nodeid, 0.0)))


class _MutantFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Gives one module its mutant's code; all others come from their files."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        parts = mutant.path.relative_to(_SOURCE.parent).with_suffix("").parts
        self._name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        location = str(self._mutant.path.resolve())
        return importlib.util.spec_from_file_location(fullname, location, loader=self)

    def get_source(self, fullname: str) -> str:
        return self._mutant.path.read_text()

    def get_code(self, fullname: str) -> CodeType:
        tree = mutated(self._mutant.path, self._mutant.number)
        return compile(tree, str(self._mutant.path.resolve()), "exec")


def _report(trials: Sequence[Trial]) -> str:
    survivors = [trial.mutant for trial in trials if trial.verdict is Verdict.SURVIVED]
    folders = sorted({str(trial.mutant.path.parent.relative_to(_SOURCE)) for trial in trials})
    rows = [
        _row(name, [one for one in trials if one.mutant.path.parent == _SOURCE / name]) for name in folders
    ]
    table = markdown(("folder", "mutants", "killed", "share"), [*rows, _row("all", trials)])
    return "\n\n".join(
        [table, f"Wanted: {_WANTED_SHARE:.0%}. Survivors:", *(one.diff() for one in survivors)]
    )


def _row(name: str, trials: Sequence[Trial]) -> tuple[object, ...]:
    killed = sum(trial.verdict is Verdict.KILLED for trial in trials)
    return name, len(trials), killed, f"{killed / len(trials):.1%}" if trials else "-"
