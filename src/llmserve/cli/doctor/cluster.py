"""Checks a running cluster by what its roles answered. Pure."""

from collections.abc import Iterator, Sequence

from llmserve.cli.status.ask import ApiAnswer
from llmserve.core.request import PairStatus
from llmserve.doctor import Finding, note, ok, problem, warning
from llmserve.overview.snapshot import HEALTHY
from llmserve.overview.views import RoleView, WorkerView
from llmserve.runner.board import ProcessState
from llmserve.runner.host import MIB
from llmserve.transfer.engine.choice import BreakerState

_GB = 1e9
_HTTP_OK, _HTTP_UNAUTHORIZED, _HTTP_TOO_MANY = 200, 401, 429
_REFUSED, _UNAVAILABLE = "refused", "unavailable"  # what stands for a breaker where there is none


def role(view: RoleView) -> Finding:
    error, restarts = _error(view), view.restarts
    if view.stand in (ProcessState.WAITING, ProcessState.STARTING):
        return note(view.name, "not ready yet", error, restarts=restarts)
    if error:
        return problem(view.name, "not healthy", f"{error}. Its log: {view.log}", restarts=restarts)
    value = f"healthy, pid {view.pid}"
    if restarts:
        advice = f"Why it ended is in its log: {view.log}"
        return warning(view.name, f"{value}, restarted {restarts}x", advice, restarts=restarts)
    return ok(view.name, value, restarts=0)


def _error(view: RoleView) -> str:
    """Returns why the role does not serve; empty when it does."""
    if view.stand != ProcessState.READY:
        return f"It is {view.stand}" + (f": {view.health}" if view.health else "")
    if view.health != HEALTHY:
        return view.health
    if view.worker is not None and not view.worker.available:
        return f"It gets no requests: {view.worker.reason}"
    return ""


def api(answer: ApiAnswer) -> Finding:
    name = f"API of {answer.name}"
    if answer.status == _HTTP_OK:
        return ok(name, f"answered a request in {answer.seconds:.2f} s", seconds=answer.seconds)
    if answer.status == _HTTP_UNAUTHORIZED and not answer.sent_key:
        return note(
            name,
            "asks for an API key",
            "None is known here: security.api_keys has none, or its variables are not set.",
        )
    if answer.status == _HTTP_TOO_MANY:
        return warning(name, "refused a request: no room now", answer.error)
    value = f"answered {answer.status}" if answer.status else "did not answer"
    return problem(name, value, f"To a request for one token: {answer.error}")


def transfers(name: str, worker: WorkerView) -> Finding:
    """Judges the KV that a worker fetched from all others."""
    name = f"KV to {name}"
    figures = {"transferred_bytes": worker.transferred_bytes, "failures": worker.transfer_failures}
    last = f", last over {worker.last_transport}" if worker.last_transport else ""
    value = f"{worker.transferred_bytes / MIB:.1f} MiB{last}; may use {', '.join(worker.transports)}"
    if worker.transfer_failures:
        advice = (
            f"{worker.transfer_failures} attempts failed since it started: the KV came over another "
            "transport, or was computed again. The worker's log has each reason."
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
