"""The same benches of two trees in turns, each figure of the old one beside the new one's.

Each tree runs its own bench with its own source, in a process of its own; the trees share this Python.
A figure is the median over the rounds. Rows that only one tree has are shown as they are.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from bench.table import markdown

Table = list[list[str]]  # the headings, then the rows
_NUMBER = re.compile(r"-?\d[\d,]*(\.\d+)?")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--old", type=Path, required=True, help="a repository")
    parser.add_argument("--new", type=Path, default=Path(), help="a repository; default: this one")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each bench")
    parser.add_argument("--benches", nargs="+", required=True, help="benches that both trees have")


def run(old: Path, new: Path, rounds: int, benches: Sequence[str]) -> str:
    return "\n\n".join(f"### {bench}\n\n{_compared(bench, old, new, rounds)}" for bench in benches)


def _compared(bench: str, old: Path, new: Path, rounds: int) -> str:
    turns = [(_tables(_run(old, bench)), _tables(_run(new, bench))) for _ in range(rounds)]
    before, after = ([turn[side] for turn in turns] for side in (0, 1))
    tables = zip_longest(_medians(before), _medians(after))
    return "\n\n".join(_side_by_side(one or [], other or []) for one, other in tables)


def _run(tree: Path, bench: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tree.resolve() / "src"), str(tree.resolve())]),
    }
    command = [sys.executable, "-m", "bench", bench]
    print(f"{tree}: {bench}", file=sys.stderr, flush=True)
    ended = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return ended.stdout


def _tables(text: str) -> list[Table]:
    """The Markdown tables of an output."""
    tables, is_open = list[Table](), False
    for line in text.splitlines():
        if not line.startswith("| "):
            is_open = False
        elif not line.startswith("| --- "):
            if not is_open:
                tables.append([])
            is_open = True
            tables[-1].append([cell.strip() for cell in line.strip("| ").split("|")])
    return tables


def _medians(rounds: Sequence[list[Table]]) -> list[Table]:
    """One list of tables for those of all rounds: of cells that begin with a number, the median."""
    return [
        [[_median(cells) for cells in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]
        for tables in zip(*rounds, strict=True)
    ]


def _median(cells: Sequence[str]) -> str:
    """Of numbers, the median with its unit; a range behind it is left out. Of texts, the first."""
    found = [number for number in map(_NUMBER.match, cells) if number is not None]
    if len(found) < len(cells):
        return cells[0]
    unit = cells[0][found[0].end() :].partition(" (")[0]
    return f"{statistics.median(float(one.group().replace(',', '')) for one in found):g}{unit}"


def _side_by_side(old: Table, new: Table) -> str:
    headings, *_ = new or old
    rows = [list(_cells(one or (), other or ())) for one, other in zip_longest(old[1:], new[1:])]
    return markdown(headings, rows)


def _cells(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    for before, after in zip_longest(old, new, fillvalue="-"):
        yield before if before == after else f"{before} -> {after}"
