"""Runs the unit tests of a folder on one mutant after another, each in a process of its own.

A mutant within a function is tried in place: one process imports the tests of the folder, and a fork of it
gives the function its mutant's code. The fork runs the tests that call the function, and stops at the first
that fails. A first fork, without a mutant, finds out which tests these are and how long each takes.

A mutant outside of functions changes what is computed on import, such as a default. Its process starts before
the import, and runs the tests of the module itself, then those of the folder. No file is changed.
"""

import gc
import importlib.abc
import importlib.util
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from enum import Enum
from importlib.machinery import ModuleSpec
from inspect import CO_NEWLOCALS
from multiprocessing.connection import wait
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import NamedTuple

import pytest

from bench.code.mutants import Mutant, compiled

# Imported once, before the processes of the mutants branch off. pytest wants to import its plugins itself.
_SHARED_IMPORTS = ("numpy", "grpc.aio", "pydantic", "prometheus_client", "yaml")
# What is added to the usual time of the tests, and how many times that time they may take.
_SLACK_SECONDS, _SLOWER = 8.0, 4.0
# The most for all tests of a folder: when their calls are noted, and as they are.
_NOTED_SECONDS, _FOLDER_SECONDS = 300.0, 120.0
_POLL_SECONDS = 1.0
# Processes side by side must not share what they write, such as the cache. Their output goes nowhere.
_PYTEST = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist"]
_FORK = multiprocessing.get_context("fork")


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


class FunctionKey(NamedTuple):
    """A function of the source, nested in no other one."""

    file: str
    name: str
    line: int

    @classmethod
    def of(cls, code: CodeType) -> "FunctionKey":
        return cls(code.co_filename, code.co_qualname, code.co_firstlineno)


LiveFunctions = Mapping[FunctionKey, Sequence[FunctionType]]


class UsualRun(NamedTuple):
    """How a test runs without a mutant. calls: the functions that it calls, of those that have mutants."""

    seconds: float
    calls: frozenset[FunctionKey]


def try_on_folder(folder: Path, mutants: Sequence[Mutant], jobs: int) -> list[Trial]:
    """Tries mutants on the tests of one folder. Errors: SystemExit when the tests fail without a mutant."""
    for name in _SHARED_IMPORTS:
        importlib.import_module(name)
    with ProcessPoolExecutor(1, mp_context=_FORK) as pool:
        trials = pool.submit(_try_in_place, folder, mutants, jobs).result()
    tried = {trial.mutant for trial in trials}
    left = [mutant for mutant in mutants if mutant not in tried]
    return [*trials, *_try_on_import(folder, left, jobs)]


def changed_function(mutant: Mutant) -> CodeType | None:
    """The new code of the function that the mutant changes; None: what it changes is in no function."""
    before = {FunctionKey.of(code): code for code in _functions(compiled(mutant.path))}
    after = _functions(compiled(mutant.path, mutant.number))
    return next((code for code in after if code != before[FunctionKey.of(code)]), None)


def _functions(code: CodeType) -> Iterator[CodeType]:
    """The functions of a module or of a class that are nested in no other one."""
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from (one,) if one.co_flags & CO_NEWLOCALS else _functions(one)


# -- in place


def _try_in_place(folder: Path, mutants: Sequence[Mutant], jobs: int) -> list[Trial]:
    """Leaves out mutants that need another import. Called in a process of its own: it imports the tests."""
    changed = {mutant: changed_function(mutant) for mutant in mutants}
    loop = _InPlace({mutant: code for mutant, code in changed.items() if code is not None}, jobs)
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        _run_pytest([folder], loop)
    if loop.error:
        raise SystemExit(f"{folder}: {loop.error}")
    return loop.trials


class _InPlace:
    """A pytest plugin that runs the collected tests once for each mutant."""

    def __init__(self, changed: Mapping[Mutant, CodeType], jobs: int) -> None:
        self.trials: list[Trial] = []
        self.error = "the tests cannot be collected"
        self._changed, self._jobs = changed, jobs

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        keys = {FunctionKey.of(code) for code in self._changed.values()}
        functions = _live_functions(keys)
        usual, self.error = _usual_runs(session, functions)
        if not self.error:
            runs = self._runs(session, usual, functions)
            self.trials = list(
                _each(
                    list(runs),
                    self._jobs,
                    lambda mutant: runs[mutant].fails(session),
                    lambda mutant: sum(usual[test.nodeid].seconds for test in runs[mutant].tests),
                )
            )
        return True

    def _runs(
        self, session: pytest.Session, usual: Mapping[str, UsualRun], functions: LiveFunctions
    ) -> dict[Mutant, "_Run"]:
        runs = {
            mutant: _Run(code, functions[FunctionKey.of(code)], _callers(session, usual, mutant, code))
            for mutant, code in self._changed.items()
        }
        return {mutant: run for mutant, run in runs.items() if run.is_possible}


@dataclass(frozen=True, slots=True)
class _Run:
    """A mutant's code, the functions that get it, and the tests that call them."""

    code: CodeType
    functions: Sequence[FunctionType]
    tests: Sequence[pytest.Item]

    @property
    def is_possible(self) -> bool:
        """Whether there is a function, and it can get the code: a closure has as many cells as its code has
        free variables."""
        wanted = len(self.code.co_freevars)
        return bool(self.functions) and all(len(one.__code__.co_freevars) == wanted for one in self.functions)

    def fails(self, session: pytest.Session) -> bool:
        for function in self.functions:
            function.__code__ = self.code
        return any(_fails(session, test) for test in self.tests)


def _live_functions(keys: Iterable[FunctionKey]) -> LiveFunctions:
    """The functions of these keys that exist in this process, wherever something holds them."""
    found: dict[FunctionKey, list[FunctionType]] = {key: [] for key in keys}
    for one in gc.get_objects():
        if type(one) is FunctionType and (key := FunctionKey.of(one.__code__)) in found:
            found[key].append(one)
    return found


def _callers(
    session: pytest.Session, usual: Mapping[str, UsualRun], mutant: Mutant, code: CodeType
) -> list[pytest.Item]:
    """The tests that call the function: those of its module first, then the fastest."""
    own, key = f"test_{mutant.path.stem}.py", FunctionKey.of(code)
    tests = [test for test in session.items if key in usual[test.nodeid].calls]
    return sorted(tests, key=lambda test: (test.path.name != own, usual[test.nodeid].seconds))


def _usual_runs(session: pytest.Session, functions: LiveFunctions) -> tuple[dict[str, UsualRun], str]:
    """Runs the tests in a process of its own. Returns the run of each by its node id, and what failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "runs.json"
        process = _FORK.Process(target=_observe, args=(session, functions, file))
        process.start()
        process.join(_NOTED_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            return {}, f"the tests take more than {_NOTED_SECONDS:.0f} s without a mutant"
        runs = json.loads(file.read_text())
    failed = [name for name, (_, _, has_failed) in runs.items() if has_failed]
    usual = {
        name: UsualRun(seconds, frozenset(FunctionKey(*call) for call in calls))
        for name, (seconds, calls, _) in runs.items()
    }
    return usual, f"fails without a mutant: {', '.join(failed)}" if failed else ""


def _observe(session: pytest.Session, functions: LiveFunctions, file: Path) -> None:
    # Codes are noted by their ids, because the hash of a code is that of all that it contains.
    keys = {id(one.__code__): key for key, some in functions.items() for one in some}
    calls = set[int]()

    def note(frame: FrameType, event: str, argument: object) -> None:
        calls.add(id(frame.f_code))

    runs = {}
    for test in session.items:
        calls.clear()
        began = time.monotonic()
        threading.settrace(note)
        sys.settrace(note)
        failed = _fails(session, test)
        sys.settrace(None)
        called = sorted({keys[one] for one in calls & keys.keys()})
        runs[test.nodeid] = (time.monotonic() - began, called, failed)
    file.write_text(json.dumps(runs))
    os._exit(0)


def _fails(session: pytest.Session, test: pytest.Item) -> bool:
    before = session.testsfailed
    test.config.hook.pytest_runtest_protocol(item=test, nextitem=None)
    return session.testsfailed > before


# -- on import


def _try_on_import(folder: Path, mutants: Sequence[Mutant], jobs: int) -> Iterator[Trial]:
    """Tries the tests of the mutant's own module first: their import is short."""
    own = {mutant: list(folder.rglob(f"test_{mutant.path.stem}.py")) for mutant in mutants}
    left = [mutant for mutant in mutants if not own[mutant]]
    known = [mutant for mutant in mutants if own[mutant]]
    for trial in _each(known, jobs, lambda mutant: _fails_on_import(mutant, own[mutant]), _folder_seconds):
        if trial.verdict is Verdict.KILLED:
            yield trial
        else:
            left.append(trial.mutant)
    yield from _each(left, jobs, lambda mutant: _fails_on_import(mutant, [folder]), _folder_seconds)


def _folder_seconds(mutant: Mutant) -> float:
    return _FOLDER_SECONDS / _SLOWER


def _fails_on_import(mutant: Mutant, tests: Sequence[Path]) -> bool:
    sys.meta_path.insert(0, _MutantFinder(mutant))
    return _run_pytest(["-x", *tests]) != 0


class _MutantFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Gives one module its mutant's code; all others come from their files."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        parts = mutant.path.resolve().with_suffix("").parts
        parts = parts[len(parts) - parts[::-1].index("src") :]
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
        return compiled(self._mutant.path, self._mutant.number)


# -- processes


def _run_pytest(arguments: Sequence[str | Path], *plugins: object) -> int:
    return int(pytest.main([*_PYTEST, *map(str, arguments)], plugins=plugins))


def _each(
    mutants: Sequence[Mutant],
    jobs: int,
    fails: Callable[[Mutant], bool],
    usual_seconds: Callable[[Mutant], float],
) -> Iterator[Trial]:
    """Calls `fails` for each mutant in a process of its own, and at most `jobs` at once. One that takes too
    long has failed: the mutant made it endless."""
    waiting, running = deque(mutants), dict[int, _Process]()
    while waiting or running:
        while waiting and len(running) < jobs:
            one = _Process(waiting.popleft(), fails, usual_seconds)
            running[one.sentinel] = one
        wait(list(running), _POLL_SECONDS)
        for sentinel, one in list(running.items()):
            if trial := one.trial():
                del running[sentinel]
                print(trial.describe(), file=sys.stderr, flush=True)
                yield trial


class _Process:
    def __init__(
        self, mutant: Mutant, fails: Callable[[Mutant], bool], usual_seconds: Callable[[Mutant], float]
    ) -> None:
        self._mutant, self._began = mutant, time.monotonic()
        self._limit = _SLACK_SECONDS + _SLOWER * usual_seconds(mutant)
        self._process = _FORK.Process(target=_exit_with, args=(fails, mutant))
        self._process.start()
        self.sentinel = self._process.sentinel

    def trial(self) -> Trial | None:
        """The result; None: the process runs."""
        seconds = time.monotonic() - self._began
        if self._process.exitcode is None:
            if seconds < self._limit:
                return None
            self._process.kill()
            self._process.join()
        verdict = Verdict.SURVIVED if self._process.exitcode == 0 else Verdict.KILLED
        return Trial(self._mutant, verdict, seconds)


def _exit_with(fails: Callable[[Mutant], bool], mutant: Mutant) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os._exit(int(fails(mutant)))
