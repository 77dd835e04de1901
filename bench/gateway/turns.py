"""What `bench gateway` measures: the cases, the targets that take turns, and what each turn cost."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil
import uvloop

from bench.gateway.load import Load, Prompts, drive


@dataclass(frozen=True, slots=True)
class Case:
    """tokens: of the answer."""

    kind: str
    prompt: str
    tokens: int
    clients: int

    @property
    def is_default(self) -> bool:
        """One of those that a run without options has: each value beside the usual one of all others."""
        usual = (self.prompt == "30", self.tokens == 16, self.clients == 32)
        return usual.count(False) <= 1 and self.prompt != "7500"

    def __str__(self) -> str:
        return f"{self.kind}, {self.prompt} + {self.tokens} tokens"


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured. processes: pid of each, by the name that the tables have."""

    name: str
    url: str
    processes: Mapping[str, int]

    def cpu_seconds(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self.processes.items()}


@dataclass(frozen=True, slots=True)
class Turn:
    """cpu_ms: a request's, by process."""

    load: Load
    cpu_ms: Mapping[str, float]


Turns = Mapping[str, Sequence[Turn]]  # by the name of their target


def cpu_seconds(pid: int) -> float:
    """A process and its descendants, by the clocks that /proc/PID/stat shows in steps of 10 ms."""
    family = (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True)))
    return sum(time.clock_gettime(~one << 3 | 2) for one in family)


def take_turn(target: Target, prompts: Prompts, clients: int, seconds: float, numbers: Iterator[int]) -> Turn:
    before = target.cpu_seconds()
    load = uvloop.run(drive(target.url, prompts, clients, seconds, numbers))
    after = target.cpu_seconds()
    return Turn(load, {name: 1000 * (after[name] - before[name]) / load.requests for name in after})
