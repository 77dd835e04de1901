"""The same benches of two trees in turns, each figure of the old one beside the new one's.

Each tree runs its own bench with its own source, in a process of its own; the trees share this Python.
A figure is the median over the rounds. Rows are matched by their labels, and figures by their headings; a
dash stands for what only the other tree has.
"""

import argparse
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.table import markdown

Table = list[list[str]]  # the headings, then the rows
_Rows = Mapping[tuple[str, ...], Mapping[str, str]]  # by label: the other cells, by heading
_NUMBER = re.compile(r"-?\d[\d,]*(\.\d+)?")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--old", type=Path, required=True, help="a repository")
    parser.add_argument("--new", type=Path, default=Path(), help="a repository; default: this one")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each bench")
    parser.add_argument(
        "--benches",
        nargs="+",
        required=True,
        help="benches that both trees have; one with options in quotes: 'store --parts chat'",
    )


def run(old: Path, new: Path, rounds: int, benches: Sequence[str]) -> str:
    return "\n\n".join(f"### {bench}\n\n{_compared(bench, old, new, rounds)}" for bench in benches)


def _compared(bench: str, old: Path, new: Path, rounds: int) -> str:
    turns = [(tables(_run(old, bench)), tables(_run(new, bench))) for _ in range(rounds)]
    before, after = ([turn[side] for turn in turns] for side in (0, 1))
    return "\n\n".join(markdown(*table) for table in side_by_side(medians(before), medians(after)))


def _run(tree: Path, bench: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tree.resolve() / "src"), str(tree.resolve())]),
    }
    command = [sys.executable, "-m", "bench", *shlex.split(bench)]
    print(f"{tree}: {bench}", file=sys.stderr, flush=True)
    ended = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return ended.stdout


def tables(text: str) -> list[Table]:
    """The Markdown tables of an output."""
    found, is_open = list[Table](), False
    for line in text.splitlines():
        if not line.startswith("| "):
            is_open = False
        elif not line.startswith("| --- "):
            if not is_open:
                found.append([])
            is_open = True
            found[-1].append([cell.strip() for cell in line.strip()[1:-1].split("|")])
    return found


def medians(rounds: Sequence[list[Table]]) -> list[Table]:
    """One list of tables for those of all rounds: of cells that begin with a number, the median."""
    return [
        [[_median(cells) for cells in zip(*rows, strict=True)] for rows in zip(*of_rounds, strict=True)]
        for of_rounds in zip(*rounds, strict=True)
    ]


def _median(cells: Sequence[str]) -> str:
    """Of numbers, the median with its unit; a range behind it is left out. Of texts, the first. What is the
    same in all rounds stays as it is."""
    found = [number for number in map(_NUMBER.match, cells) if number is not None]
    if len(found) < len(cells) or len(set(cells)) == 1:
        return cells[0]
    unit = cells[0][found[0].end() :].partition(" (")[0]
    return f"{statistics.median(float(one.group().replace(',', '')) for one in found):g}{unit}"


def side_by_side(old: Sequence[Table], new: Sequence[Table]) -> list[tuple[list[str], list[list[str]]]]:
    """Headings and rows of each table. Tables are matched by their first heading."""
    before, after = _by_heading(old), _by_heading(new)
    return [_merged(before.get(name), after.get(name)) for name in {**after, **before}]


def _by_heading(found: Sequence[Table]) -> dict[tuple[str, int], Table]:
    """By the first heading, and the number among the tables that have the same one."""
    seen, named = Counter[str](), dict[tuple[str, int], Table]()
    for table in found:
        name = table[0][0]
        named[name, seen[name]] = table
        seen[name] += 1
    return named


def _merged(old: Table | None, new: Table | None) -> tuple[list[str], list[list[str]]]:
    one, other = new or old or [[]], old or new or [[]]
    size = max(_label_size(one), _label_size(other))
    headings = list(dict.fromkeys([*one[0][size:], *other[0][size:]]))
    before, after = _by_label(old, size), _by_label(new, size)
    labels = {**after, **before}
    rows = [
        [*label, *(_cell(before.get(label, {}), after.get(label, {}), name) for name in headings)]
        for label in labels
    ]
    return [*one[0][:size], *headings], rows


def _label_size(table: Table) -> int:
    """As many of its leading cells as tell the rows apart; one row needs none."""
    most = len(table[0])
    return next((size for size in range(most) if _are_distinct(table[1:], size)), most)


def _are_distinct(rows: Table, size: int) -> bool:
    return len({tuple(row[:size]) for row in rows}) == len(rows)


def _by_label(table: Table | None, size: int) -> _Rows:
    if table is None:
        return {}
    headings, *rows = table
    return {tuple(row[:size]): dict(zip(headings[size:], row[size:], strict=True)) for row in rows}


def _cell(old: Mapping[str, str], new: Mapping[str, str], heading: str) -> str:
    before, after = old.get(heading, "-"), new.get(heading, "-")
    return before if before == after else f"{before} -> {after}"
