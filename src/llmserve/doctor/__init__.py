"""Finds what can be wrong with this machine, its software, its transports and a manifest.

A check is a function from facts (paths, numbers, answers) to a Finding; at most it reads files. examine.py
gathers the facts and puts the findings into sections; `llmserve doctor` shows them, with those of a running
cluster. trial.py runs a trial of each transport and of the bare machine, whose processes are measure.py;
judge.py compares the two.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """OK: as it should be. NOTE: nothing to do, good to know. WARNING: works, but worse than it could.
    PROBLEM: will not work."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. value: what there is. advice: what it means and what to do; empty exactly for OK. figures:
    the numbers behind the value, for programs, with units in their names."""

    name: str
    status: Status
    value: str
    advice: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert bool(self.advice) == (self.status is not Status.OK), f"advice for what is not ok: {self}"


@dataclass(frozen=True, slots=True)
class FindingSection:
    """Findings that are shown together under a title."""

    title: str
    findings: tuple[Finding, ...]


def ok(name: str, value: str, **figures: float) -> Finding:
    return Finding(name, Status.OK, value, "", figures)


def note(name: str, value: str, advice: str, **figures: float) -> Finding:
    return Finding(name, Status.NOTE, value, advice, figures)


def warning(name: str, value: str, advice: str, **figures: float) -> Finding:
    return Finding(name, Status.WARNING, value, advice, figures)


def problem(name: str, value: str, advice: str, **figures: float) -> Finding:
    return Finding(name, Status.PROBLEM, value, advice, figures)


def count(sections: Iterable[FindingSection], status: Status) -> int:
    return sum(finding.status is status for section in sections for finding in section.findings)
