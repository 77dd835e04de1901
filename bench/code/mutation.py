"""How many mutants of the deciding code unit tests kill: one operator, constant or call is changed at a time.

A sample is tried by default, the same one each time; `--sample 0` tries all.
"""

import argparse
import ast
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.code.mutants import Mutant, mutants
from bench.code.trials import Trial, Verdict, try_on_folder
from bench.table import markdown

_SOURCE, _TESTS = Path("src/llmserve"), Path("tests/unit")
# The deciding code: folders and files of llmserve; of a folder, what waits for nobody and asks nobody.
DECIDING = (
    "scheduler",
    "router",
    "kvstore/eviction",
    "core/lease_table.py",
    "transfer/engine/choice.py",  # the breaker, and the transport of a pair
    "transfer/engine/pair.py",
    "workers/adapters/slots.py",
    "engines/speculation/switch.py",
    "engines/speculation/meter.py",
)
_IMPURE = ("asyncio", "grpc", "llmserve.rpc", "prometheus_client", "threading")
_WANTED_SHARE = 0.93


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
    by_folder: dict[Path, list[Mutant]] = {}
    for mutant in found:
        by_folder.setdefault(tests_of(mutant.path), []).append(mutant)
    trials = (try_on_folder(folder, some, jobs) for folder, some in sorted(by_folder.items()))
    return [trial for some in trials for trial in some]


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
