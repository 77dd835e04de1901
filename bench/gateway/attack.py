"""What clients see while an attacker holds connections and sends slowly, beside the same load in quiet.

The cluster has simulated engines that take no time, and the limits that a manifest has by default. Turns with
and without the attacker follow each other. It comes from another address than the clients, has more
connections than one address may have, and readers that take nothing of long answers (attacker.py).
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from bench.cluster import running
from bench.gateway.attacker import Siege
from bench.gateway.gateway import manifest, ours
from bench.gateway.load import Prompts, chat
from bench.gateway.turns import Turn, take_turn
from bench.table import markdown

SECONDS, REPEATS, CLIENTS, CONNECTIONS = 5.0, 3, 16, 5000
_PROMPT_TOKENS, _ANSWER_TOKENS = 30, 16
_WAYS = ("in quiet", "attacked")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a turn")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="turns of each")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="requests at a time")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="that the attacker holds")


@contextmanager
def _attack(url: str, connections: int, found: list[Siege]) -> Iterator[None]:
    """Adds to found what became of it."""
    command = [sys.executable, "-m", "bench.gateway.attacker", url, str(connections)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "open\n":
                raise RuntimeError("the attacker has ended")
            yield
            found.append(Siege(**json.loads(process.communicate("")[0])))
        finally:
            process.kill()


def run(seconds: float, repeats: int, clients: int, connections: int) -> str:
    """Errors: SystemExit with the table when a request failed."""
    sieges: list[Siege] = []
    turns: Mapping[str, list[Turn]] = {way: [] for way in _WAYS}
    with running(manifest(0.0)) as cluster:
        target, model, numbers = ours(cluster), cluster.state()["model"], itertools.count(1)
        prompts = Prompts(target.url, model, chat(_PROMPT_TOKENS), _ANSWER_TOKENS, stream=True)
        for way in _WAYS * repeats:
            with _attack(target.url, connections, sieges) if way == "attacked" else nullcontext():
                turns[way].append(take_turn(target, prompts, clients, seconds, numbers))
    return _report(turns, sieges)


def _report(turns: Mapping[str, Sequence[Turn]], sieges: Sequence[Siege]) -> str:
    table = markdown(
        ("load", "served", "failed", "requests/s", "p50 ms", "p99 ms", "apiserver's CPU ms a request"),
        [(way, *_row(turns[way])) for way in _WAYS],
    )
    quiet, attacked = (_p50(turns[way]) for way in _WAYS)
    last = sieges[-1]
    text = (
        f"{table}\n\nAttacked, an answer takes {attacked / quiet:.2f} times as long (p50). In the end, the "
        f"attacker held {last.held} connections;\n{last.refused} had been refused (429), and {last.closed} "
        "closed."
    )
    failures = [failure for way in _WAYS for turn in turns[way] for failure in turn.load.failures]
    if failures:
        raise SystemExit(f"{text}\n\n{len(failures)} requests failed:\n{failures[0]}")
    return text


def _row(turns: Sequence[Turn]) -> tuple[object, ...]:
    loads = [turn.load for turn in turns]
    failed = sum(len(load.failures) for load in loads)
    figures = (
        (statistics.median(load.requests / load.seconds for load in loads), 0),
        (1000 * _p50(turns), 1),
        (1000 * statistics.median(load.percentile(0.99) for load in loads), 1),
        (statistics.median(turn.cpu_ms["apiserver"] for turn in turns), 2),
    )
    served = sum(load.requests for load in loads) - failed
    return served, failed, *(f"{value:.{digits}f}" for value, digits in figures)


def _p50(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.load.percentile(0.5) for turn in turns)
