"""Work in children of its own: what they do to themselves is an answer, and the server goes on."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

_SERVER = """
import os, sys, time
from llmserve.apiserver.grammars.forks import ForkLimits, ForkServer

prepared = []

class Mute(Exception):
    def __str__(self):
        raise MemoryError

def work(task):
    match task["do"]:
        case "well": return ""
        case "prepared": return prepared[-1]
        case "badly": return "a reason"
        case "raise": raise ValueError("not this")
        case "print": os.write(2, b"forged")
        case "compute":
            while True: pass
        case "sleep": time.sleep(60)
        case "hoard": return str(len(bytearray(2**28)))
        case "die": os.abort()
        case "mute": raise Mute
    return ""

limits = ForkLimits(cpu_seconds=1, seconds=float(sys.argv[1]), memory_bytes=2**26)
ForkServer(work, limits, tasks=0, answers=1, prepare=lambda line: prepared.append(line["what"])).serve()
"""


class Served:
    """seconds: what a task may take."""

    def __init__(self, seconds: float = 30) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def send(self, number: int, do: str) -> None:
        self.write(number=number, task={"do": do})

    def write(self, **line: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        heard: dict[str, Any] = json.loads(self.process.stdout.readline())
        return heard

    def answer(self, do: str) -> tuple[str, bool]:
        self.send(1, do)
        heard = self.hear()
        return heard["problem"], heard["limited"]


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    served = Served(getattr(request, "param", 30))
    yield served
    _, said = served.process.communicate(timeout=30)
    assert said == ""
    assert served.process.returncode == 0


def test_a_task_says_how_it_went(served: Served) -> None:
    assert served.answer("well") == ("", False)
    assert served.answer("badly") == ("a reason", False)
    assert served.answer("raise") == ("ValueError: not this", False)
    assert served.answer("print") == ("", False)


def test_a_child_that_takes_too_much_or_dies_is_an_answer(served: Served) -> None:
    memory = ("it takes more than 64 MiB of memory, or ends the compiler", True)
    assert served.answer("hoard") == memory
    assert served.answer("die") == memory
    assert served.answer("well") == ("", False)


short = pytest.mark.parametrize("served", [1.0], indirect=True)


@short
def test_a_child_that_cannot_even_answer_ends_and_nobody_else(served: Served) -> None:
    served.send(1, "sleep")
    served.send(2, "mute")
    heard = {answer["number"]: answer for answer in (served.hear(), served.hear())}
    assert heard[2]["limited"]
    assert heard[1]["problem"] == "it takes more than 1 s of computing"


@short
@pytest.mark.parametrize("do", ["compute", "sleep"])
def test_a_child_that_does_not_end_is_killed_and_keeps_nobody_waiting(served: Served, do: str) -> None:
    served.send(1, do)
    served.send(2, "well")
    assert served.hear()["number"] == 2
    late = served.hear()
    assert late == {"number": 1, "problem": "it takes more than 1 s of computing", "limited": True}


def test_what_is_no_task_is_prepared_for_all_later_ones(served: Served) -> None:
    served.write(what="one")
    assert [served.answer("prepared") for _ in range(2)] == [("one", False)] * 2
    served.write(number=7, what="another")
    assert served.hear() == {"number": 7, "problem": "", "limited": False}
    assert served.answer("prepared") == ("another", False)


def test_no_child_outlives_a_server_that_is_killed() -> None:
    """A child has the end of the channel, too: while it lives, nobody sees that the server has ended."""
    served = Served()
    served.send(1, "sleep")
    served.send(2, "well")
    assert served.hear()["number"] == 2
    served.process.kill()
    assert served.process.communicate(timeout=30) == ("", "")
