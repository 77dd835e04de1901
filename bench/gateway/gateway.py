"""What a request costs: CPU time of apiserver, router and workers, beside the floor in the same run.

The floor is vLLM's own OpenAI layer in one process, on an engine that answers at once (floor.py). Ours is a
cluster of simulated engines that take no time and give the same tokens. Both have the same chats in turns.
CPU time is what counts: clients and servers share the machine, so the latencies say little.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop
import yaml

from bench.cluster import Cluster, running
from bench.gateway.apiservers import compare
from bench.gateway.floor import Floor
from bench.gateway.instant_worker import LEG_TOKENS, worker_costs
from bench.gateway.load import Load, Prompts, ask, chat
from bench.gateway.mtls import NAME as MTLS
from bench.gateway.mtls import protected
from bench.gateway.mtls import table as mtls_table
from bench.gateway.rivals import RIVALS, rival
from bench.gateway.turns import Case, Target, Turn, Turns, take_turn
from bench.table import markdown

PROMPTS: Mapping[str, list[dict[str, str]]] = {
    "30": chat(30),
    "1500": chat(1500),
    "7500": chat(7500),
    "7500-shared": chat(7500, is_shared=True),
}
KINDS, TOKENS, CLIENTS = ("plain", "streamed"), (16, 200), (1, 32, 256)
SECONDS, REPEATS = 1.5, 3
_WORKERS = ("prefill", "decode")
_OURS = ("apiserver", "router", "kvmanager", *_WORKERS)
_MAX_FAILURES_SHOWN = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all", dest="every", action="store_true", help="every prompt with every length and all clients"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="only these; as for the next three")
    parser.add_argument("--prompts", nargs="+", choices=tuple(PROMPTS), help="tokens of the prompt")
    parser.add_argument("--tokens", nargs="+", type=int, choices=TOKENS, help="tokens of the answer")
    parser.add_argument("--clients", nargs="+", type=int, choices=CLIENTS, help="requests at a time")
    parser.add_argument("--step-ms", type=float, default=0.0, help="of a decode step, of both; 0: at once")
    parser.add_argument("--rivals", action="store_true", help="measure other gateways too; installs them")
    parser.add_argument("--mtls", action="store_true", help="measure a cluster with security.mtls, too")
    parser.add_argument(
        "--apiservers", nargs="+", type=int, help="compare only clusters of so many, such as 1 2 4"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a turn")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="turns of each")


def cases(
    *,
    every: bool,
    kinds: Iterable[str] | None = None,
    prompts: Iterable[str] | None = None,
    tokens: Iterable[int] | None = None,
    clients: Iterable[int] | None = None,
) -> list[Case]:
    """What is asked for; without a choice the default ones."""
    values = itertools.product(kinds or KINDS, prompts or PROMPTS, tokens or TOKENS, clients or CLIENTS)
    chosen = [Case(*one) for one in values]
    is_choice = every or any((prompts, tokens, clients))
    return chosen if is_choice else [case for case in chosen if case.is_default]


def short_and_many(choice: Mapping[str, Any]) -> list[Case]:
    """What clusters of several apiservers are asked: short requests of many clients, unless others are
    chosen."""
    chosen = {name: values for name, values in choice.items() if values}
    return cases(every=True, **({"prompts": ("30",), "tokens": (16,), "clients": (32, 256)} | chosen))


def run(
    every: bool,
    step_ms: float,
    rivals: bool,
    mtls: bool,
    apiservers: Sequence[int] | None,
    seconds: float,
    repeats: int,
    **choice: Any,
) -> str:
    """Errors: SystemExit with the tables when a request failed."""
    if apiservers:
        asked = short_and_many(choice)
        return compare(apiservers, manifest(step_ms / 1000), asked, _prompts, seconds, repeats)
    asked = cases(every=every, **choice)
    with ExitStack() as stack:
        cluster = stack.enter_context(running(manifest(step_ms / 1000)))
        state = cluster.state()
        floor = stack.enter_context(Floor(manifest_of(cluster), Path(state["model_dir"])))
        targets = [Target("floor", floor.url, {"floor": floor.pid}), ours(cluster)]
        if mtls:
            secure = stack.enter_context(running(protected(manifest(step_ms / 1000), stack)))
            targets.append(ours(secure, MTLS))
        for name in RIVALS if rivals else ():
            url, pid = stack.enter_context(rival(name, floor.url))
            targets.append(Target(name, url, {name: pid, "floor": floor.pid}))
        results = {case: measure(case, targets, state["model"], seconds, repeats) for case in asked}
        legs = _legs(manifest_of(cluster), sorted({case.clients for case in asked}), seconds)
    return f"{report(results)}\n\nThe part of a worker without its engine, CPU ms a leg:\n\n{legs}"


def manifest(step_seconds: float) -> dict[str, Any]:
    """A cluster of simulated engines that have room for all clients and hand each request over. A step takes
    so long whatever is in it."""
    found: dict[str, Any] = yaml.safe_load(Path("examples/sim.yaml").read_text())
    spec = found["spec"]
    spec["engine"]["sim"].update(
        prefill_tokens_per_second=0,
        decode_step_seconds=step_seconds,
        decode_seconds_per_sequence=0,
        blocks=max(CLIENTS) * 8192 // 16,
    )
    spec["engine"]["max_decode_concurrency"] = 512
    spec["deployment"]["replicas"] = dict.fromkeys(_WORKERS, 1)
    spec["scheduling"]["disaggregate"] = "always"
    return found


def ours(cluster: Cluster, name: str = "ours") -> Target:
    pids = {role["name"].rpartition("-")[0]: int(role["pid"]) for role in cluster.state()["roles"]}
    return Target(name, cluster.url, {process: pids[process] for process in _OURS})


def manifest_of(cluster: Cluster) -> Path:
    return cluster.run_dir.parent / "llmserve.yaml"


def measure(case: Case, targets: Sequence[Target], model: str, seconds: float, repeats: int) -> Turns:
    """Turns of all targets, one after the other, as often as `repeats` says. Errors: RuntimeError when their
    answers differ."""
    numbers = itertools.count(1)
    plain = [_prompts(replace(case, kind="plain"), target.url, model) for target in targets]
    uvloop.run(_check_alike(targets, plain, next(numbers)))
    turns: dict[str, list[Turn]] = {target.name: [] for target in targets}
    for target in [*targets] * repeats:
        prompts = _prompts(case, target.url, model)
        turns[target.name].append(take_turn(target, prompts, case.clients, seconds, numbers))
    print(f"{case}, {case.clients} clients: done", file=sys.stderr)
    return turns


def _prompts(case: Case, url: str, model: str) -> Prompts:
    return Prompts(url, model, PROMPTS[case.prompt], case.tokens, stream=case.kind == "streamed")


async def _check_alike(targets: Sequence[Target], prompts: Sequence[Prompts], number: int) -> None:
    """All targets give the same tokens for the same prompt, or their costs cannot be compared."""
    answers = [await ask(target.url, one, number) for target, one in zip(targets, prompts, strict=True)]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    if len(set(texts)) > 1:
        raise RuntimeError(f"{[target.name for target in targets]} answer differently: {texts}")


def _legs(manifest: Path, clients: Sequence[int], seconds: float) -> str:
    """Without pauses between legs: at 1 client each message has one token, with more they fill."""
    rows = [
        (role, tokens, count, f"{worker_costs(manifest, role, count, seconds):.2f}")
        for role, tokens in LEG_TOKENS.items()
        for count in clients
    ]
    return markdown(("leg", "tokens", "clients", "ms"), rows)


# The report


def report(results: Mapping[Case, Turns]) -> str:
    """Errors: SystemExit, with the same tables, when a request failed."""
    tables = f"CPU ms a request:\n\n{_costs(results)}\n\nWhat clients saw:\n\n{_latencies(results)}"
    if mtls := mtls_table(results):
        tables = f"{tables}\n\nTLS between all processes:\n\n{mtls}"
    if rivals := _rivals(results):
        tables = f"{tables}\n\nCPU ms a request, other gateways before the floor:\n\n{rivals}"
    failures = [
        f"{name}: {case}, {case.clients} clients: {failure}"
        for case, turns in results.items()
        for name, load in _loads(turns)
        for failure in load.failures
    ]
    if failures:
        shown = "\n".join(failures[:_MAX_FAILURES_SHOWN])
        raise SystemExit(f"{tables}\n\n{len(failures)} requests failed:\n{shown}")
    return tables


def _costs(results: Mapping[Case, Turns]) -> str:
    headings = ("case", "clients", "floor", *_OURS, "without workers", "ratio", "apiserver / floor")
    return markdown(headings, [_cost_row(case, turns) for case, turns in results.items()])


def _cost_row(case: Case, turns: Turns) -> tuple[object, ...]:
    floor = _median_ms(turns["floor"], "floor")
    by_process = {name: _median_ms(turns["ours"], name) for name in _OURS}
    serving = sum(ms for name, ms in by_process.items() if name not in _WORKERS)
    ratios = (f"{serving / floor:.2f}", f"{by_process['apiserver'] / floor:.2f}")
    figures = (floor, *by_process.values(), serving)
    return str(case), case.clients, *(f"{ms:.2f}" for ms in figures), *ratios


def _rivals(results: Mapping[Case, Turns]) -> str:
    """Empty when none was measured."""
    rows = [
        (str(case), case.clients, name, *_rival_row(name, turns))
        for case, turns in results.items()
        for name in turns
        if name in RIVALS
    ]
    return markdown(("case", "clients", "gateway", "its own", "floor behind", "ratio"), rows) if rows else ""


def _rival_row(name: str, turns: Turns) -> tuple[str, str, str]:
    own, behind = (_median_ms(turns[name], process) for process in (name, "floor"))
    return f"{own:.2f}", f"{behind:.2f}", f"{(own + behind) / _median_ms(turns['floor'], 'floor'):.2f}"


def _median_ms(turns: Sequence[Turn], process: str) -> float:
    return statistics.median(turn.cpu_ms[process] for turn in turns)


def _latencies(results: Mapping[Case, Turns]) -> str:
    rows = [
        (str(case), case.clients, name, *_latency_row(turns[name]))
        for case, turns in results.items()
        for name in turns
    ]
    headings = (
        "case",
        "clients",
        "of",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "chunks",
        "client's CPU ms",
        "failed",
    )
    return markdown(headings, rows)


def _latency_row(turns: Sequence[Turn]) -> tuple[object, ...]:
    loads = [turn.load for turn in turns]
    figures = (
        (statistics.median(load.requests / load.seconds for load in loads), 0),
        (statistics.median(1000 * load.percentile(0.5) for load in loads), 1),
        (statistics.median(1000 * load.percentile(0.99) for load in loads), 1),
        (statistics.median(load.chunks / load.requests for load in loads), 1),
        (statistics.median(1000 * load.client_cpu_seconds / load.requests for load in loads), 2),
    )
    return *(f"{value:.{digits}f}" for value, digits in figures), sum(len(load.failures) for load in loads)


def _loads(turns: Turns) -> Iterator[tuple[str, Load]]:
    return ((name, turn.load) for name, of_target in turns.items() for turn in of_target)
