"""Runs each task in a child of its own, within time and memory.

The server is one thread that reads tasks as lines of JSON and writes answers the same way. It imports what
the tasks need once, and forks for each of them. A child that dies, or has to be killed, is an answer too.
"""

import ctypes
import json
import os
import resource
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Task = Mapping[str, Any]
_MAX_PROBLEM_LENGTH = 1000  # a pipe holds more: a child never waits for its reader
_READ_BYTES = 65536
_PATIENCE = 3.0
_PARENT_DEATH_SIGNAL = 1  # of prctl


@dataclass(frozen=True, slots=True)
class ForkLimits:
    """cpu_seconds: of all threads of a child. seconds: by the clock, on a busy machine. memory_bytes: beyond
    what the server itself has."""

    cpu_seconds: int = 10
    seconds: float = 30.0
    memory_bytes: int = 512 * 2**20

    @classmethod
    def of(cls, cpu_seconds: int) -> "ForkLimits":
        """Returns limits with which a task may take this much of a processor that others use too."""
        return cls(cpu_seconds, _PATIENCE * cpu_seconds)


@dataclass(frozen=True, slots=True)
class CompileResult:
    """problem: why the task failed; empty: it did not. limited: for want of time or memory, so that it may
    come out differently another time."""

    problem: str = ""
    limited: bool = False


@dataclass(slots=True)
class _Child:
    number: int
    pid: int
    pipe: int
    until: float
    late: bool = False
    said: bytearray = field(default_factory=bytearray)


class ForkServer:
    """work: returns the problem of a task. tasks, answers: file descriptors, of lines
    `{"number": 1, "task": …}` and `{"number": 1, "problem": "…", "limited": false}`. prepare: is called in
    this process with each line that is no task, so that the children of later ones have what it makes; a line
    with a number is answered afterwards."""

    def __init__(
        self,
        work: Callable[[Task], str],
        limits: ForkLimits,
        tasks: int,
        answers: int,
        prepare: Callable[[Mapping[str, Any]], None] = lambda line: None,
    ) -> None:
        self._work, self._limits, self._tasks, self._answers = work, limits, tasks, answers
        self._prepare = prepare
        self._pid, self._libc = os.getpid(), ctypes.CDLL(None)
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}  # by pipe
        self._unread = b""

    def serve(self) -> None:
        """Returns when there are no more tasks; what runs then is killed."""
        self._selector.register(self._tasks, selectors.EVENT_READ)
        try:
            while self._step():
                pass
        finally:
            for child in self._children.values():
                _kill(child)
            self._selector.close()

    def _step(self) -> bool:
        """False: there are no more tasks."""
        for key, _ in self._selector.select(self._patience()):
            if key.fd != self._tasks:
                self._hear(self._children[key.fd])
            elif not self._take():
                return False
        now = time.monotonic()
        for child in self._children.values():
            if child.until <= now and not child.late:
                child.late = True
                _kill(child)
        return True

    def _patience(self) -> float | None:
        times = [child.until for child in self._children.values() if not child.late]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _take(self) -> bool:
        read = os.read(self._tasks, _READ_BYTES)
        *lines, self._unread = (self._unread + read).split(b"\n")
        for line in map(json.loads, lines):
            if "task" in line:
                self._begin(line)
            else:
                self._prepare(line)
                self._answer(line.get("number"), CompileResult())
        return bool(read)

    def _begin(self, line: Mapping[str, Any]) -> None:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._run(line["task"], writing)
        os.close(writing)
        child = _Child(line["number"], pid, reading, time.monotonic() + self._limits.seconds)
        self._children[reading] = child
        self._selector.register(reading, selectors.EVENT_READ)

    def _run(self, task: Task, pipe: int) -> None:
        """Runs in the child, and does not return."""
        try:
            answer = self._result(task)
            os.write(pipe, json.dumps([answer.problem[:_MAX_PROBLEM_LENGTH], answer.limited]).encode())
        finally:
            os._exit(0)  # nothing of the server may run on in the child, which may be out of memory

    def _result(self, task: Task) -> CompileResult:
        try:
            self._end_with_server()
            _silence()
            _limit(self._limits)
            return CompileResult(self._work(task))
        except MemoryError:
            return self._over()
        except BaseException as error:
            return CompileResult(f"{type(error).__name__}: {error}")

    def _end_with_server(self) -> None:
        """A child has the end of the channel: while it lives, nobody sees that the server is gone."""
        self._libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._pid:
            os._exit(0)

    def _hear(self, child: _Child) -> None:
        said = os.read(child.pipe, _READ_BYTES)
        child.said += said
        if said:
            return
        self._selector.unregister(child.pipe)
        os.close(child.pipe)
        del self._children[child.pipe]
        _, status = os.waitpid(child.pid, 0)
        answer = CompileResult(*json.loads(child.said)) if child.said else self._death(child, status)
        self._answer(child.number, answer)

    def _answer(self, number: int | None, answer: CompileResult) -> None:
        """number: that of the line; None: nobody waits for an answer."""
        if number is not None:
            line = {"number": number, "problem": answer.problem, "limited": answer.limited}
            os.write(self._answers, json.dumps(line).encode() + b"\n")

    def _death(self, child: _Child, status: int) -> CompileResult:
        if child.late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
            return CompileResult(
                f"it takes more than {self._limits.cpu_seconds} s of computing", limited=True
            )
        return self._over()

    def _over(self) -> CompileResult:
        memory = f"{self._limits.memory_bytes >> 20} MiB of memory"
        return CompileResult(f"it takes more than {memory}, or ends the compiler", limited=True)


def _kill(child: _Child) -> None:
    os.kill(child.pid, signal.SIGKILL)


def _silence() -> None:
    """Native compilers write what they think of a client's text to stderr, which is the log."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _limit(limits: ForkLimits) -> None:
    """Limits this process. RLIMIT_DATA is used, since address space is reserved for much that is never
    used."""
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 1))
    memory = _data_bytes() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _data_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
