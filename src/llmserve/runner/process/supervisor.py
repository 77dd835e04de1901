"""Keeps one role running: starts its process, waits for its ready line, starts it again when it ends."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmserve.config.load import located
from llmserve.config.plan import ProcessSpec
from llmserve.core.errors import LLMServeError, ManifestError, StartFailed
from llmserve.core.hang import HangLimits, Watchdog
from llmserve.core.process import WorkMeter
from llmserve.core.tasks import first_done
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.rpc.role import ProcessFailure
from llmserve.runner.board import Board, ProcessState
from llmserve.runner.guard_link import GuardLink
from llmserve.runner.logs import tail
from llmserve.runner.process.child import ProcessCommand
from llmserve.runner.process.family import Family, end, members, shared_memory
from llmserve.runner.process.liveness import questions
from llmserve.runner.process.policy import Decision, RestartPolicy, exit_text, stop_seconds
from llmserve.runner.process.run import RoleRun, StartResult
from llmserve.runner.state import DrainedMark

_LAST_LINES = 15


@dataclass(frozen=True, slots=True)
class ProcessJob:
    """manifest: path of the file. mark: name of this role's processes (processes.py). hang: how long it may
    give no answer once it is ready. drained: set for a worker. credentials: of who asks it."""

    spec: ProcessSpec
    manifest: Path
    command: ProcessCommand
    mark: str
    ready_timeout_seconds: float
    hang: HangLimits
    drained: DrainedMark | None = None
    credentials: Credentials = NO_CREDENTIALS


@dataclass(frozen=True, slots=True)
class _RunEnd:
    """cause: what the process itself reported."""

    why: str
    cause: ProcessFailure | None = None
    ready: bool = False
    ready_seconds: float = 0.0
    timed_out: bool = False
    on_purpose: bool = False


class ProcessSupervisor:
    """Life: run, as one task -> cancel that task -> stop. `ready`: the role has been ready at least once."""

    def __init__(
        self,
        job: ProcessJob,
        policy: RestartPolicy,
        board: Board,
        guard: GuardLink,
        say: Callable[[str], None],
    ) -> None:
        self.spec = job.spec
        self.ready = asyncio.Event()
        self._job = job
        self._policy = policy
        self._board = board
        self._guard = guard
        self._say = say
        self._run: RoleRun | None = None
        self._segments: set[str] = set()  # shared memory of the current run, as far as it was seen

    async def run(self) -> None:
        """Never returns. Errors: StartFailed when the role cannot be started, ManifestError when another try
        would end alike."""
        while True:
            ended = await self._run_once()
            await self._end_processes()
            if ended.on_purpose and self._job.drained:
                await self._stay_away(self._job.drained)
                continue
            lasts = ended.cause is not None and ended.cause.lasts
            decision = self._policy.ended(ready=ended.ready, ran_seconds=ended.ready_seconds, lasts=lasts)
            if not decision.restart or (ended.timed_out and not self.ready.is_set()):
                raise self._given_up(ended)
            await self._pause(ended, decision)

    async def _run_once(self) -> _RunEnd:
        self._set(ProcessState.STARTING, "starting the process")
        try:
            run = self._run = RoleRun(self._job.command, lambda text: self._set(ProcessState.STARTING, text))
        except StartFailed as error:  # out of memory, processes or files: that may pass
            return _RunEnd(error.message)
        self._guard.session_started(run.pid)
        self._set(ProcessState.STARTING, "importing", pid=run.pid)
        started = await run.until_ready(self._job.ready_timeout_seconds)
        if started is StartResult.TIMEOUT:
            return _RunEnd(f"was not ready after {self._job.ready_timeout_seconds:.0f} s", timed_out=True)
        if is_ready := started is StartResult.READY:
            self._see_segments()
            self._set(ProcessState.READY)
            self.ready.set()
            if hang := await self._hang_of(run):
                self._board.hung(self.spec.name)
                return _RunEnd(f"is killed: {hang}", ready=True, ready_seconds=run.ready_seconds)
        code = await run.until_ended()
        assert code is not None, "waited without a deadline"
        return _RunEnd(
            f"{'ended' if is_ready else 'ended before it was ready'} ({exit_text(code)})",
            cause=run.failure,
            ready=is_ready,
            ready_seconds=run.ready_seconds,
            on_purpose=is_ready and code == 0,
        )

    async def _hang_of(self, run: RoleRun) -> str:
        """Watches a ready process until it ends. Returns why to kill it; empty: it ended by itself."""
        async with questions(self.spec, self._job.credentials) as ask:
            if ask is None:
                return ""
            works = WorkMeter(lambda: members(self._family()))
            watchdog = Watchdog(ask, works, self._job.hang, counts=False)
            hung, ended = await first_done(self.spec.name, watchdog.until_hung(), run.until_ended())
            return "" if not ended.cancelled() else hung.result()

    async def _stay_away(self, mark: DrainedMark) -> None:
        """A worker ends with 0 only when it was told to leave. Our own stop cancels this task first."""
        try:
            mark.set()
        except OSError as error:
            self._say(f"          {self.spec.name}: {error}: it cannot be told from one that failed")
            return
        self._set(ProcessState.DRAINED, f"llmserve drain --undo {self.spec.name}", pid=0)
        await mark.until_cleared()

    def _set(self, state: ProcessState, detail: str = "", *, pid: int | None = None) -> None:
        self._board.set(self.spec.name, state, detail, pid=pid)

    async def _pause(self, ended: _RunEnd, decision: Decision) -> None:
        name, wait_seconds = self.spec.name, decision.wait_seconds
        self._board.restarting(name, f"{ended.why}; again in {wait_seconds:.1f} s")
        if ended.cause is not None:
            self._say(f"          {name}: {self._message(ended.cause)}")
        elif last := next(filter(str.strip, reversed(tail(self._job.command.log, _LAST_LINES))), ""):
            self._say(f"          {name}: last in its log: {last}")
        await asyncio.sleep(wait_seconds)

    def _given_up(self, ended: _RunEnd) -> LLMServeError:
        name, log, cause = self.spec.name, self._job.command.log, ended.cause
        self._set(ProcessState.FAILED, ended.why, pid=0)
        if cause is not None and cause.lasts:
            return ManifestError(f"{name} cannot start: {self._message(cause)}")
        if cause is not None:
            return StartFailed(f"{name} {ended.why}: {self._message(cause)}. Its log: {log}")
        lines = "\n".join(f"  {line}" for line in tail(log, _LAST_LINES))
        return StartFailed(f"{name} {ended.why}. The end of {log}:\n{lines or '  (it is empty)'}")

    def _message(self, cause: ProcessFailure) -> str:
        """Adds the manifest's line, where the cause names a key of it."""
        error = ManifestError(cause.message, key=cause.key)
        return located(error, self._job.manifest, self.spec.model).message

    async def stop(self, forced: asyncio.Event) -> None:
        """Asks the process to stop; kills it at its deadline, or when `forced`. No process is left then.
        Idempotent."""
        text = ""
        if (run := self._run) is not None:
            self._set(ProcessState.STOPPING, "draining")
            run.terminate()
            await first_done(self.spec.name, run.until_ended(stop_seconds(self.spec.role)), forced.wait())
            if await run.until_ended(0) is None:
                text = "killed: it did not stop in time"
            await self._end_processes()
        self._set(ProcessState.STOPPED, text, pid=0)

    async def _end_processes(self) -> None:
        """Kills what is left of the current run: the process, its children, their shared memory."""
        run = self._run
        if run is None:
            return
        self._see_segments()  # of children that outlived it
        await asyncio.to_thread(end, self._family(), 0, frozenset(self._segments))
        await run.aclose()
        self._guard.session_ended(run.pid)
        self._run = None
        self._segments.clear()

    def _see_segments(self) -> None:
        self._segments |= shared_memory(members(self._family()))
        self._guard.shared_memory(self._segments)
        self._board.saw_shared_memory(self.spec.name, frozenset(self._segments))

    def _family(self) -> Family:
        return Family(self._job.mark, frozenset({self._run.pid} if self._run else ()))
