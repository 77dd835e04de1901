"""What one trial of a transport, or of the baseline, came to; and how a process says it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

ANSWER_WORD = "LLMSERVE_TRIAL"  # other lines of stdout are the libraries' own


class Outcome(StrEnum):
    """MEASURED: the bytes arrived, and were the right ones. UNAVAILABLE: it cannot be used here, and says
    why. FAILED: a transfer failed or brought wrong bytes. CRASHED: its process ended. HUNG: it was past its
    deadline."""

    MEASURED = "measured"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    CRASHED = "crashed"
    HUNG = "hung"


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
