"""What one trial of a transport, or of the baseline, came to; and how a process says it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

# Lines of stdout that begin with other words are the libraries' own.
ANSWER_WORD = "LLMSERVE_TRIAL"
STEP_WORD = "LLMSERVE_STEP"


class Outcome(StrEnum):
    """MEASURED: the bytes arrived, and were the right ones. UNAVAILABLE: it cannot be used here, and says
    why. FAILED: a transfer failed or brought wrong bytes. CRASHED: its process ended. HUNG: it was past its
    deadline."""

    MEASURED = "measured"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    CRASHED = "crashed"
    HUNG = "hung"


def say_step(text: str) -> None:
    """What the process does from now on: where it hung, if it does."""
    print(STEP_WORD, text, flush=True)


def last_step(output: str) -> str:
    steps = [line.partition(" ")[2] for line in output.splitlines() if line.startswith(STEP_WORD)]
    return steps[-1] if steps else "starting"


@dataclass(frozen=True, slots=True)
class Answer:
    """rates: bytes per second by what was measured, with MEASURED. reason: with the others."""

    outcome: Outcome
    reason: str = ""
    rates: Mapping[str, float] = field(default_factory=dict)

    def say(self) -> None:
        print(ANSWER_WORD, json.dumps(asdict(self)), flush=True)

    @classmethod
    def heard(cls, output: str) -> "Answer | None":
        """None: the process printed none."""
        for line in output.splitlines():
            word, _, text = line.partition(" ")
            if word == ANSWER_WORD:
                fields: dict[str, Any] = json.loads(text)
                return cls(Outcome(fields["outcome"]), fields["reason"], fields["rates"])
        return None
