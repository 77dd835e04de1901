"""Judges each transport by its trial. Pure."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from llmserve.doctor import Finding, note, ok, problem, warning
from llmserve.doctor.measure import COPY, READ, SOCKET
from llmserve.doctor.trial import TrialOutcome, TrialReport
from llmserve.transfer.select import ALWAYS, FAULTS_VARIABLE, LAST_RESORT

_GB = 1e9
_SLOW, _VERY_SLOW = 0.33, 0.1  # of the baseline; less is noise on a machine in use
_BUSY = "If other programs run here, measure again without them."
_OVER_UCX = {"nixl": "NIXL uses UCX", "ucx": "UCX goes"}
_BASELINE_NAMES = {COPY: "a copy in memory", SOCKET: "a plain socket"}


@dataclass(frozen=True, slots=True)
class Setting:
    """What the judgement depends on. order: transports that engines try first, from the manifest if
    is_order_given, else the default. install: how to get the package of a transport that needs one."""

    order: Collection[str] = ()
    is_order_given: bool = False
    has_rdma: bool = False
    has_gpus: bool = False
    install: Mapping[str, str] = field(default_factory=dict)

    def is_tried(self, kind: str) -> bool:
        return kind in (*self.order, *ALWAYS)


def baseline(answer: TrialReport) -> Finding:
    if answer.outcome is not TrialOutcome.MEASURED:
        advice = f"Transports are not compared with what this machine could do: {answer.reason}."
        return warning("baseline", "not measured", advice)
    value = ", ".join(f"{_BASELINE_NAMES[kind]} {rate / _GB:.1f} GB/s" for kind, rate in answer.rates.items())
    figures = {f"{kind}_gigabytes_per_second": rate / _GB for kind, rate in answer.rates.items()}
    return ok("baseline", value, **figures)


def faults(plan: str) -> Finding:
    """plan: that of the environment, which workers follow and the trials here do not."""
    advice = f"Every worker started from here makes its transfers fail on purpose: unset {FAULTS_VARIABLE}"
    return warning("faults", plan, advice)


def judge(kind: str, answer: TrialReport, plain_rates: Mapping[str, float], setting: Setting) -> Finding:
    if answer.outcome is TrialOutcome.MEASURED:
        return _measured(kind, answer.rates[READ], plain_rates, setting)
    if answer.outcome is TrialOutcome.UNAVAILABLE:
        return _unavailable(kind, answer.reason, setting)
    advice = f"{_CONSEQUENCES[answer.outcome]} {_what_to_do(kind, setting)}"
    say = problem if setting.is_tried(kind) else warning
    return say(kind, f"{answer.outcome}: {answer.reason}", advice)


_CONSEQUENCES = {
    TrialOutcome.FAILED: "It starts, but does not move KV.",
    TrialOutcome.CRASHED: "It would take an engine down with it.",
    TrialOutcome.HUNG: "It would hold an engine up.",
}


def _what_to_do(kind: str, setting: Setting) -> str:
    if kind == LAST_RESORT:
        return "Without tcp no KV moves at all: look at firewall rules for loopback."
    if kind in setting.order:
        return f"Take {kind} out of transfer.engine_order."
    if kind in ALWAYS:
        return "Please report it."
    return "The manifest does not use it."


def _unavailable(kind: str, reason: str, setting: Setting) -> Finding:
    value = f"not usable: {reason.removeprefix(f'{kind}: ')}"
    if kind == LAST_RESORT:
        return problem(kind, value, _what_to_do(kind, setting))
    install = f"To use it: {setting.install[kind]}" if kind in setting.install else ""
    if kind in setting.order and setting.is_order_given:
        advice = f"The manifest names it, but other transports will be used. {install}"
        return warning(kind, value, advice.rstrip())
    return note(kind, value, install or "Other transports are used.")


def _measured(kind: str, rate: float, plain_rates: Mapping[str, float], setting: Setting) -> Finding:
    plain = COPY if kind == "shm" else SOCKET
    best = plain_rates.get(plain, 0.0)
    share = rate / best if best else math.inf
    compared = f", {share:.2f}x {_BASELINE_NAMES[plain]}" if best else ""
    value, figures = f"{rate / _GB:.1f} GB/s{compared}", {"gigabytes_per_second": rate / _GB}
    remark = _remark(kind, setting)
    if share < _SLOW:
        say = warning if share < _VERY_SLOW else note
        return say(kind, value, f"Slower than this machine could be. {_BUSY} {remark}".rstrip(), **figures)
    return note(kind, value, remark, **figures) if remark else ok(kind, value, **figures)


def _remark(kind: str, setting: Setting) -> str:
    """Explains the speed of a transport on this machine."""
    if kind in _OVER_UCX and not setting.has_rdma:
        return f"{_OVER_UCX[kind]} over TCP and shared memory: expected on a host without RDMA."
    if kind == "nccl" and not setting.has_gpus:
        return "Without GPUs it is gloo over TCP, for trying things out."
    return ""
