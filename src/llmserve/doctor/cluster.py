"""A running cluster, from what its roles answered. Pure."""

from dataclasses import dataclass

from llmserve.doctor.finding import Finding, note, ok, problem, warning
from llmserve.doctor.host import MIB


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """trouble: why it does not serve, empty when it does."""

    name: str
    pid: int
    restarts: int
    log: str
    trouble: str


@dataclass(frozen=True, slots=True)
class TransferFacts:
    """What a worker fetched from all others. transports: the usable ones, the preferred first."""

    worker: str
    transports: tuple[str, ...]
    last_transport: str
    transferred_bytes: int
    failures: int


def role(facts: RoleFacts) -> Finding:
    if facts.trouble:
        return problem(
            facts.name, "not healthy", f"{facts.trouble}. Its log: {facts.log}", restarts=facts.restarts
        )
    value = f"healthy, pid {facts.pid}"
    if facts.restarts:
        advice = f"Why it ended is in its log: {facts.log}"
        return warning(facts.name, f"{value}, restarted {facts.restarts}x", advice, restarts=facts.restarts)
    return ok(facts.name, value, restarts=0)


def transfers(facts: TransferFacts) -> Finding:
    """KV that a worker fetched."""
    name = f"KV to {facts.worker}"
    figures = {"transferred_bytes": facts.transferred_bytes, "failures": facts.failures}
    usable = ", ".join(facts.transports)
    if not facts.transferred_bytes and not facts.failures:
        return ok(name, f"none yet; may use {usable}", **figures)
    last = facts.last_transport or "none"
    value = f"{facts.transferred_bytes / MIB:.1f} MiB, last over {last}; may use {usable}"
    if facts.failures:
        advice = (
            f"{facts.failures} transfers failed: the KV came over the next transport, or was computed again. "
            "The worker's log has each reason."
        )
        return warning(name, value, advice, **figures)
    if facts.transports and facts.last_transport != facts.transports[0]:
        return note(
            name, value, f"{facts.transports[0]} was passed over: the worker's log says why.", **figures
        )
    return ok(name, value, **figures)


def silence(answer: str) -> Finding:
    """answer: of a service that gave none."""
    return problem("service", answer, "`llmserve status` shows its health, and its log has the reason.")


def orphans(blocks: int) -> Finding:
    if blocks:
        advice = "They are pinned although their lease has ended, which should not last: please report it."
        return problem("orphaned KV", f"{blocks} blocks", advice, blocks=blocks)
    return ok("orphaned KV", "none", blocks=0)
