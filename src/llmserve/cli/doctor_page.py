"""What `llmserve doctor` prints."""

import textwrap
from collections.abc import Iterator, Sequence

from rich.text import Text

from llmserve.doctor.finding import Finding, Section, Status, count

_COLOURS = {Status.OK: "green", Status.NOTE: "cyan", Status.WARNING: "yellow", Status.PROBLEM: "bold red"}
_STATUS_WIDTH = max(map(len, Status)) + 2
_NAME_WIDTH = len("prefill-0 > decode-0") + 2
_INDENT = _STATUS_WIDTH + _NAME_WIDTH
_LEAST_WIDTH = 30


def page(section: Section, width: int) -> Text:
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
    """Paths and commands stay whole, so that they can be copied. A line break of the text stays one."""
    lines = text.splitlines() or [""]
    return [
        piece
        for line in lines
        for piece in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
    ]


def summary(sections: Sequence[Section]) -> Text:
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
