"""The faults to inject into a transport, their frequency, and the random draws that decide when.

A plan consists of rules and a seed, in any order:

fail_submit=1/16, delay=1/4 for 0.05s, stall=1/1 after 20 at most 1, seed=7

`1/16` strikes one transfer in sixteen, at random; `after 20` spares the first twenty; `at most 1` ends the
rule after one strike.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from llmserve.core.errors import InvalidRequest

_RULE = re.compile(
    r"1/(?P<every>[1-9]\d*)"
    r"(?: for (?P<seconds>\d+(?:\.\d+)?)s)?"
    r"(?: after (?P<after>\d+))?"
    r"(?: at most (?P<at_most>\d+))?"
)
_GRAMMAR = "1/N [for SECONDSs] [after N] [at most N], with `for` in a delay, and only there"


class Fault(StrEnum):
    """What happens to a transfer that is struck."""

    FAIL_SUBMIT = "fail_submit"  # read or write raises, and nothing is copied
    FAIL_POLL = "fail_poll"  # it ends as FAILED after its bytes were copied
    DELAY = "delay"  # its end is reported at the earliest so many seconds after its start
    STALL = "stall"  # it does not end until it is cancelled or its peer is dropped
    CORRUPT = "corrupt"  # read: a byte of the copy is inverted. write: a piece is lost. Both end as DONE
    DROP_PEER = "drop_peer"  # read or write raises, transfers in flight fail, and so do all until `connect`


@dataclass(frozen=True, slots=True)
class Rule:
    """Strikes one transfer in `every` at random, none of the first `after`, and at most `at_most`. seconds:
    the length of a delay."""

    fault: Fault
    every: int
    seconds: float = 0.0
    after: int = 0
    at_most: float = math.inf

    def __str__(self) -> str:
        seconds = f" for {self.seconds:f}s" if self.fault is Fault.DELAY else ""
        after = f" after {self.after}" if self.after else ""
        at_most = f" at most {self.at_most}" if self.at_most < math.inf else ""
        return f"{self.fault}=1/{self.every}{seconds}{after}{at_most}"


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Which transfers fail, and how: at most one rule for each fault. With equal seeds the same transfers of
    a transport fail."""

    rules: tuple[Rule, ...] = ()
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> "FaultPlan":
        """Errors: InvalidRequest naming the part that is wrong."""
        rules: dict[Fault, Rule] = {}
        seed = 0
        for part in filter(None, map(str.strip, text.split(","))):
            name, _, value = part.partition("=")
            if name == "seed":
                seed = _seed(value)
                continue
            rule = _rule(name, value)
            if rule.fault in rules:
                raise InvalidRequest(f"faults: {name} is there twice")
            rules[rule.fault] = rule
        return cls(tuple(rules.values()), seed)

    def __str__(self) -> str:
        """Returns the text that `parse` reads."""
        return ", ".join([*map(str, self.rules), f"seed={self.seed}"])


def _seed(value: str) -> int:
    if not value.isdecimal():
        raise InvalidRequest(f"faults: seed={value}: not a whole number")
    return int(value)


def _rule(name: str, value: str) -> Rule:
    if name not in set(Fault):
        raise InvalidRequest(f"faults: no fault is called {name!r}; there are {', '.join(Fault)}")
    fault = Fault(name)
    found = _RULE.fullmatch(value)
    if found is None or (found["seconds"] is not None) != (fault is Fault.DELAY):
        raise InvalidRequest(f"faults: {name}={value}: not of the form {_GRAMMAR}")
    return Rule(
        fault=fault,
        every=int(found["every"]),
        seconds=float(found["seconds"] or 0),
        after=int(found["after"] or 0),
        at_most=int(found["at_most"]) if found["at_most"] else math.inf,
    )


class RuleDraws:
    """The random draws of one rule, which depend on no other rule."""

    def __init__(self, rule: Rule, seed: str) -> None:
        self.rule = rule
        self._random = Random(f"{seed}/{rule.fault}")
        self._drawn = 0
        self._struck = 0

    def strikes(self) -> bool:
        """Says whether the rule strikes the next transfer. Call it once for each transfer."""
        hit = self._random.randrange(self.rule.every) == 0
        self._drawn += 1
        if not hit or self._drawn <= self.rule.after or self._struck >= self.rule.at_most:
            return False
        self._struck += 1
        return True

    def choose(self, count: int) -> int:
        """Returns any number from 0 to count - 1."""
        return self._random.randrange(count)


class Faults:
    """The plan of one transport and the state of its draws. name: the transport's, so that two transports
    with one plan are struck at different times."""

    def __init__(self, plan: FaultPlan, name: str) -> None:
        self._name = name
        self.replace(plan)

    def replace(self, plan: FaultPlan) -> None:
        """Replaces the plan from the next transfer on and counts again from 0. Any thread may call it."""
        self.plan = plan
        self._draws = [RuleDraws(rule, f"{plan.seed}/{self._name}") for rule in plan.rules]

    def draw(self) -> Mapping[Fault, RuleDraws]:
        """Returns the faults that strike the next transfer, each with its draws."""
        return {one.rule.fault: one for one in self._draws if one.strikes()}
