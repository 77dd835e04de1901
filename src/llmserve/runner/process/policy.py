"""What the supervisor decides: whether and when to start a role again, and the order of the stop. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.config.plan import ProcessRole, ProcessSpec
from llmserve.rpc.client import Backoff

MAX_START_FAILURES = 3
STABLE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Decision:
    """restart False: the cluster cannot go on without this role."""

    restart: bool
    wait_seconds: float = 0.0


class RestartPolicy:
    """Decides for one role. A role that never became ready in three tries will not: its settings are wrong.
    Where it reports itself that another try would end alike, one is enough. A role that was ready once is
    started again for as long as the cluster lives, ever more slowly: the others serve meanwhile. After 30 s
    without a crash the waits begin anew."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._was_ready = False
        self._failures = 0

    def ended(self, *, ready: bool, ran_seconds: float, lasts: bool = False) -> Decision:
        """Call it when the process has ended by itself. ready: it had become ready in this run. ran_seconds:
        time since then. lasts: what ended it would end the next try as well."""
        if ready:
            self._was_ready = True
            if ran_seconds >= STABLE_SECONDS:
                self._backoff.reset()
        else:
            self._failures += 1
        if not self._was_ready and (lasts or self._failures >= MAX_START_FAILURES):
            return Decision(restart=False)
        return Decision(restart=True, wait_seconds=self._backoff.next())


_STAGES: tuple[frozenset[ProcessRole], ...] = (
    frozenset({ProcessRole.APISERVER}),
    frozenset(role for role in ProcessRole if role.is_worker),
    frozenset({ProcessRole.CONTROL}),
    frozenset({ProcessRole.ROUTER}),
    frozenset({ProcessRole.KVMANAGER}),
)


def stop_stages(processes: Sequence[ProcessSpec]) -> list[list[ProcessSpec]]:
    """Returns the processes to stop together, in order: what admits, what computes, what these report to."""
    stages = [[one for one in processes if one.role in roles] for roles in _STAGES]
    return [stage for stage in stages if stage]


def stop_seconds(role: ProcessRole) -> float:
    """Returns the deadline of an ordered stop. Workers drain what runs; the others only close."""
    if role.is_worker:
        return 20.0
    return 10.0 if role in (ProcessRole.APISERVER, ProcessRole.CONTROL) else 5.0


def exit_text(code: int) -> str:
    """Says how a process ended. code: as of subprocess."""
    return f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
