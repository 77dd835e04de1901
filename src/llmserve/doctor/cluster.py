"""Checks of a running cluster, from what its roles answered. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmserve.core.request import PairStatus
from llmserve.doctor.finding import Finding, note, ok, problem, warning
from llmserve.doctor.host import MIB
from llmserve.transfer.engine.choice import BreakerState

_GB = 1e9
_HTTP_OK, _HTTP_UNAUTHORIZED, _HTTP_TOO_MANY = 200, 401, 429
_REFUSED, _UNAVAILABLE = "refused", "unavailable"  # what stands for a breaker where there is none


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """error: why the role does not serve; empty when it does. is_starting: it was not ready yet."""

    name: str
    pid: int
    restarts: int
    log: str
    error: str
    is_starting: bool = False


@dataclass(frozen=True, slots=True)
class TransferFacts:
    """What a worker fetched from all others. transports: those that it may use."""

    worker: str
    transports: tuple[str, ...]
    last_transport: str
    transferred_bytes: int
    failures: int


def role(facts: RoleFacts) -> Finding:
    if facts.is_starting:
        return note(facts.name, "not ready yet", facts.error, restarts=facts.restarts)
    if facts.error:
        return problem(
            facts.name, "not healthy", f"{facts.error}. Its log: {facts.log}", restarts=facts.restarts
        )
    value = f"healthy, pid {facts.pid}"
    if facts.restarts:
        advice = f"Why it ended is in its log: {facts.log}"
        return warning(facts.name, f"{value}, restarted {facts.restarts}x", advice, restarts=facts.restarts)
    return ok(facts.name, value, restarts=0)


@dataclass(frozen=True, slots=True)
class ApiFacts:
    """The answer to a request for one token. status: of HTTP; 0: no answer came, and `error` says why.
    sent_key: the request had a key, or none is needed."""

    name: str
    status: int
    seconds: float
    error: str = ""
    sent_key: bool = True


def api(facts: ApiFacts) -> Finding:
    name = f"API of {facts.name}"
    if facts.status == _HTTP_OK:
        return ok(name, f"answered a request in {facts.seconds:.2f} s", seconds=facts.seconds)
    if facts.status == _HTTP_UNAUTHORIZED and not facts.sent_key:
        return note(name, "asks for an API key", "The variables of security.api_keys are not set here.")
    if facts.status == _HTTP_TOO_MANY:
        return warning(name, "refused a request: no room now", facts.error)
    value = f"answered {facts.status}" if facts.status else "did not answer"
    return problem(name, value, f"To a request for one token: {facts.error}")


def transfers(facts: TransferFacts) -> Finding:
    """Judges the KV that a worker fetched."""
    name = f"KV to {facts.worker}"
    figures = {"transferred_bytes": facts.transferred_bytes, "failures": facts.failures}
    last = f", last over {facts.last_transport}" if facts.last_transport else ""
    value = f"{facts.transferred_bytes / MIB:.1f} MiB{last}; may use {', '.join(facts.transports)}"
    if facts.failures:
        advice = (
            f"{facts.failures} attempts failed since it started: the KV came over another transport, or was "
            "computed again. The worker's log has each reason."
        )
        return note(name, value, advice, **figures)
    return ok(name, value, **figures)


def pairs(worker: str, rows: Sequence[PairStatus]) -> Iterator[Finding]:
    """rows: all rows of a worker. Yields a finding for each peer that it fetches from, and one for the
    transports that it lacks."""
    for peer in dict.fromkeys(row.peer for row in rows if row.peer):
        yield _pair(f"{peer} > {worker}", [row for row in rows if row.peer == peer])
    lacking = [row for row in rows if row.breaker == _UNAVAILABLE]
    if lacking:
        yield note(f"{worker} lacks", ", ".join(row.transport for row in lacking), _reasons(lacking))


def _pair(name: str, ways: Sequence[PairStatus]) -> Finding:
    refused = [way for way in ways if way.breaker == _REFUSED]
    if refused:
        return problem(name, "no connection", f"{refused[0].reason}. Prompts are computed again by decode.")
    closed = [way for way in ways if way.breaker == BreakerState.CLOSED]
    out = [way for way in ways if way.breaker != BreakerState.CLOSED]
    value = ", ".join(map(_way, ways))
    figures = {
        "gigabytes_per_second": max((way.bytes_per_second / _GB for way in ways if way.chosen), default=0.0),
        "failures": sum(way.failures for way in ways),
    }
    if not closed:
        return problem(name, value, f"Prompts are computed again by decode. {_reasons(out)}", **figures)
    if any(way.bytes_per_second for way in out):
        return warning(name, value, f"What worked before failed. {_reasons(out)}", **figures)
    if out:
        return note(name, value, _reasons(out), **figures)
    return ok(name, value, **figures)


def _way(row: PairStatus) -> str:
    if row.breaker != BreakerState.CLOSED:
        return f"{row.transport} {row.breaker}"
    speed = f" {row.bytes_per_second / _GB:.1f} GB/s" if row.bytes_per_second else " not measured yet"
    return f"{row.transport}{speed}{' (used)' if row.chosen else ''}"


def _reasons(rows: Sequence[PairStatus]) -> str:
    """A reason may already begin with the name of its transport."""
    return "; ".join(f"{row.transport}: {row.reason.removeprefix(f'{row.transport}: ')}" for row in rows)


def silence(answer: str) -> Finding:
    """answer: the sentence about a service that gave no answer."""
    return problem("service", answer, "`llmserve status` shows its health, and its log has the reason.")


def orphans(blocks: int) -> Finding:
    if blocks:
        advice = "They are pinned although their lease has ended, which should not last: please report it."
        return problem("orphaned KV", f"{blocks} blocks", advice, blocks=blocks)
    return ok("orphaned KV", "none", blocks=0)
