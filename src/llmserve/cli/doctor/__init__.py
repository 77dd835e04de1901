"""`llmserve doctor`: shows what is wrong here, and what to do about it."""

import argparse
import asyncio
import json
import os
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from llmserve.cli.cluster import DEFAULT_MANIFEST, add_cluster, find_cluster
from llmserve.cli.command import EXIT_FAILED, EXIT_OK, Command, add_json
from llmserve.cli.doctor import cluster as checks
from llmserve.cli.screen import screen
from llmserve.cli.status.ask import ApiAnswer, ask, request_one_token
from llmserve.config.load import load_manifest
from llmserve.core.errors import LLMServeError, Unavailable
from llmserve.core.request import WorkerRole
from llmserve.doctor import Finding, FindingSection, Status, count, note, ok
from llmserve.doctor.examine import OnStep, Subject, examine, section
from llmserve.overview.snapshot import Answers, snapshot
from llmserve.runner.board import ProcessState
from llmserve.runner.state import ClusterState

_ABOUT = """\
Checks this machine, the installed software, every KV transport (each is tried between two processes here, and
measured), the manifest, and the cluster if one runs, which gets a request for one token. Each line says ok,
note (nothing to do), warning (works, but worse than it could) or problem (will not work), and below it what
to do. Takes some 10 seconds, changes nothing. The exit code is 1 when there is a problem.
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)
    add_json(parser)


def _run(options: argparse.Namespace) -> int:
    sections: list[FindingSection] = []
    console = screen()
    with Console(stderr=True).status("Looking at this machine ...") as working:
        for one in _examined(options, lambda step: working.update(f"{step} ...")):
            sections.append(one)
            if not options.json:
                working.stop()  # while it runs, what is printed would go its way, to stderr
                console.print(page(one, console.width), soft_wrap=True)
                working.start()
    if options.json:
        print(json.dumps(_as_json(sections), indent=2))
    else:
        console.print(summary(sections), soft_wrap=True)
    return EXIT_FAILED if count(sections, Status.PROBLEM) else EXIT_OK


def _as_json(sections: Sequence[FindingSection]) -> dict[str, object]:
    return {
        "healthy": not count(sections, Status.PROBLEM),
        **{f"{status}s": count(sections, status) for status in (Status.PROBLEM, Status.WARNING, Status.NOTE)},
        "findings": [
            {"section": one.title.lower(), **asdict(finding)} for one in sections for finding in one.findings
        ],
    }


def _examined(options: argparse.Namespace, on_step: OnStep) -> Iterator[FindingSection]:
    try:
        cluster = find_cluster(options)
        state = cluster.state
    except LLMServeError as error:
        yield from examine(Subject(_manifest_here(options)), on_step)
        yield section("Cluster", [_absence(error)])
    else:
        yield from examine(Subject(Path(options.file or state.manifest), is_running=True), on_step)
        on_step("Asking the cluster")
        yield section("Cluster", _cluster(state, asyncio.run(ask(state.roles, cluster.credentials))))


def _manifest_here(options: argparse.Namespace) -> Path | None:
    if options.file:
        return Path(options.file)
    return Path(DEFAULT_MANIFEST) if Path(DEFAULT_MANIFEST).is_file() else None


def _absence(error: LLMServeError) -> Finding:
    if isinstance(error, Unavailable):
        return ok("cluster", "none runs here")
    return note("cluster", "not looked for", error.message)


def _cluster(state: ClusterState, answers: Answers) -> Iterator[Finding]:
    now = snapshot(state, answers, time.time())
    yield ok("cluster", f"{now.cluster}, {now.stand}")
    yield from map(checks.silence, answers.problems)
    for role in now.roles:
        yield checks.role(role)
    yield from map(checks.api, _api_answers(state))
    for role in now.roles:
        if role.worker is not None and role.worker.role != WorkerRole.PREFILL:
            yield checks.transfers(role.name, role.worker)
            yield from checks.pairs(role.name, role.worker.pairs)
    yield checks.orphans(now.orphan_blocks)


def _api_answers(state: ClusterState) -> Iterator[ApiAnswer]:
    """Asks each apiserver that should serve."""
    key = known_key(Path(state.manifest))
    for role in state.roles:
        if role["http"] and role["stand"] == ProcessState.READY:
            yield request_one_token(role, state.model, key)


def known_key(manifest: Path) -> str | None:
    """Returns a key that a client could send: empty when none is needed, None when none is known here."""
    try:
        security = load_manifest(manifest).security
    except LLMServeError:  # it was changed since the start
        return None
    if not security.asks_callers:
        return ""
    known = (one.key or os.environ.get(one.key_env or "") for one in security.api_keys)
    return next(filter(None, known), None)


COMMAND = Command("doctor", "check this machine, its transports and a cluster", _ABOUT, _configure, _run)


_COLOURS = {Status.OK: "green", Status.NOTE: "cyan", Status.WARNING: "yellow", Status.PROBLEM: "bold red"}
_STATUS_WIDTH = max(map(len, Status)) + 2
_NAME_WIDTH = len("prefill-0 > decode-0") + 2
_INDENT = _STATUS_WIDTH + _NAME_WIDTH
_LEAST_WIDTH = 30


def page(section: FindingSection, width: int) -> Text:
    """Advice stands below its line. The columns are the same in every section; no line ends in blanks."""
    lines = [Text(section.title, "bold")]
    for finding in section.findings:
        lines += _lines(finding, max(_LEAST_WIDTH, width - _INDENT))
    return Text("\n").join([*lines, Text()])


def _lines(finding: Finding, width: int) -> Iterator[Text]:
    first, *rest = _wrapped(finding.value, width)
    status = (f"{finding.status:{_STATUS_WIDTH}}", _COLOURS[finding.status])
    yield Text.assemble(status, f"{finding.name:{_NAME_WIDTH}}", first)
    style = "dim" if finding.status is Status.NOTE else ""
    for line in rest:
        yield Text(" " * _INDENT + line)
    for line in _wrapped(finding.advice, width) if finding.advice else ():
        yield Text(" " * _INDENT + line, style)


def _wrapped(text: str, width: int) -> list[str]:
    """Keeps paths and commands whole, so that they can be copied, and line breaks of the text."""
    lines = text.splitlines() or [""]
    return [
        piece
        for line in lines
        for piece in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
    ]


def summary(sections: Sequence[FindingSection]) -> Text:
    problems, warnings, notes = (
        count(sections, status) for status in (Status.PROBLEM, Status.WARNING, Status.NOTE)
    )
    worst = Status.PROBLEM if problems else Status.WARNING if warnings else Status.OK
    counted = f"{_many(problems, 'problem')}, {_many(warnings, 'warning')}, {_many(notes, 'note')}"
    return Text.assemble((_VERDICTS[worst], _COLOURS[worst]), f": {counted}.")


_VERDICTS = {
    Status.PROBLEM: "Something will not work",
    Status.WARNING: "It works, but could be better",
    Status.OK: "All is well",
}


def _many(number: int, what: str) -> str:
    return f"{number or 'no'} {what}" + ("" if number == 1 else "s")
