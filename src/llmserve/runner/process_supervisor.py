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
from llmserve.rpc.role import ProcessFailure
from llmserve.runner.board import Board, ProcessState
from llmserve.runner.child import ProcessCommand
from llmserve.runner.guard_link import GuardLink
from llmserve.runner.liveness import questions
from llmserve.runner.logs import tail
from llmserve.runner.policy import Decision, RestartPolicy, exit_text, stop_seconds
from llmserve.runner.processes import Family, end, members, remove_unused_shared_memory, shared_memory
from llmserve.runner.run import RoleRun, StartResult
from llmserve.runner.state import DrainedMark

_LAST_LINES = 15


@dataclass(frozen=True, slots=True)
class ProcessJob:
    """manifest: the file. mark: names this role's processes (processes.py). hang: how long it may give no
    answer once it is ready. drained: of a worker."""

    spec: ProcessSpec
    manifest: Path
    command: ProcessCommand
    mark: str
    ready_timeout_seconds: float
    hang: HangLimits
    drained: DrainedMark | None = None


@dataclass(frozen=True, slots=True)
class _RunEnd:
    """cause: as the process itself told it."""

    why: str
    cause: ProcessFailure | None = None
    ready: bool = False
    ready_seconds: float = 0.0
    timed_out: bool = False
    on_purpose: bool = False


class ProcessSupervisor:
    """Life: keep, as one task -> cancel that task -> stop. `ready`: it has been so at least once."""

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

    async def keep(self) -> None:
        """Never returns. Errors: when the role cannot be started StartFailed, or ManifestError when it never
        could."""
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
        name = self.spec.name
        self._board.set(name, ProcessState.STARTING, "starting the process")
        try:
            run = self._run = RoleRun(self._job.command, self._progress)
        except StartFailed as error:  # out of memory, processes or files: that may pass
            return _RunEnd(error.message)
        self._guard.session_started(run.pid)
        self._board.set(name, ProcessState.STARTING, "importing", pid=run.pid)
        started = await run.until_ready(self._job.ready_timeout_seconds)
        if started is StartResult.TIMEOUT:
            return _RunEnd(f"was not ready after {self._job.ready_timeout_seconds:.0f} s", timed_out=True)
        if started is StartResult.READY:
            self._see_segments()
            self._board.set(name, ProcessState.READY)
            self.ready.set()
            if hang := await self._hang_of(run):
                self._board.hung(name)
                return _RunEnd(f"is killed: {hang}", ready=True, ready_seconds=run.ready_seconds)
        code = await run.until_ended()
        assert code is not None, "waited without a deadline"
        when = "ended" if started is StartResult.READY else "ended before it was ready"
        return _RunEnd(
            f"{when} ({exit_text(code)})",
            cause=run.failure,
            ready=started is StartResult.READY,
            ready_seconds=run.ready_seconds,
            on_purpose=started is StartResult.READY and code == 0,
        )

    async def _hang_of(self, run: RoleRun) -> str:
        """Watches a ready process until it ends; why it is to be killed, or empty when it ended by itself."""
        async with questions(self.spec) as ask:
            if ask is None:
                return ""
            works = WorkMeter(lambda: members(self._family()))
            watchdog = Watchdog(ask, works, self._job.hang, counts=False)
            watched = asyncio.create_task(watchdog.until_hung(), name=f"{self.spec.name}.watchdog")
            ended = asyncio.create_task(run.until_ended(), name=f"{self.spec.name}.end")
            try:
                await asyncio.wait((watched, ended), return_when=asyncio.FIRST_COMPLETED)
                return "" if ended.done() else watched.result()
            finally:
                ended.cancel()
                watched.cancel()
                await asyncio.gather(watched, ended, return_exceptions=True)

    async def _stay_away(self, mark: DrainedMark) -> None:
        """A worker ends with 0 only when it is told to leave. Not by us: that is not waited for here."""
        try:
            mark.set()
        except OSError as error:
            self._say(f"          {self.spec.name}: {error}: it cannot be told from one that failed")
            return
        self._board.set(
            self.spec.name, ProcessState.DRAINED, f"llmserve drain --undo {self.spec.name}", pid=0
        )
        await mark.until_cleared()

    def _progress(self, text: str) -> None:
        self._board.set(self.spec.name, ProcessState.STARTING, text)

    async def _pause(self, ended: _RunEnd, decision: Decision) -> None:
        name, wait_seconds = self.spec.name, decision.wait_seconds
        self._board.restarting(name, f"{ended.why}; again in {wait_seconds:.1f} s")
        if ended.cause is not None:
            self._say(f"          {name}: {self._said(ended.cause)}")
        elif last := next(filter(str.strip, reversed(tail(self._job.command.log, _LAST_LINES))), ""):
            self._say(f"          {name}: last in its log: {last}")
        await asyncio.sleep(wait_seconds)

    def _given_up(self, ended: _RunEnd) -> LLMServeError:
        name, log, cause = self.spec.name, self._job.command.log, ended.cause
        self._board.set(name, ProcessState.FAILED, ended.why, pid=0)
        if cause is not None and cause.lasts:
            return ManifestError(f"{name} cannot start: {self._said(cause)}")
        if cause is not None:
            return StartFailed(f"{name} {ended.why}: {self._said(cause)}. Its log: {log}")
        lines = "\n".join(f"  {line}" for line in tail(log, _LAST_LINES))
        return StartFailed(f"{name} {ended.why}. The end of {log}:\n{lines or '  (it is empty)'}")

    def _said(self, cause: ProcessFailure) -> str:
        """With the manifest's line, where it names a key of it."""
        error = ManifestError(cause.message, key=cause.key)
        return located(error, self._job.manifest).message

    async def stop(self, forced: asyncio.Event) -> None:
        """Asks it to stop; kills it at its deadline, or when `forced`. No process is left afterwards.
        Idempotent."""
        text = ""
        if self._run is not None:
            self._board.set(self.spec.name, ProcessState.STOPPING, "draining")
            if not await self._asked_to_stop(self._run, forced):
                text = "killed: it did not stop in time"
            await self._end_processes()
        self._board.set(self.spec.name, ProcessState.STOPPED, text, pid=0)

    async def _asked_to_stop(self, run: RoleRun, forced: asyncio.Event) -> bool:
        run.terminate()
        ended = asyncio.create_task(
            run.until_ended(stop_seconds(self.spec.role)), name=f"{self.spec.name}.stop"
        )
        force = asyncio.create_task(forced.wait(), name=f"{self.spec.name}.force")
        await asyncio.wait((ended, force), return_when=asyncio.FIRST_COMPLETED)
        force.cancel()
        ended.cancel()
        return await run.until_ended(0) is not None

    async def _end_processes(self) -> None:
        """Kills what is left of the current run: itself, its children, their shared memory."""
        run = self._run
        if run is None:
            return
        self._see_segments()  # of children that outlived it
        await asyncio.to_thread(_end_family, self._family(), self._segments)
        await run.aclose()
        self._guard.session_ended(run.pid)
        self._run = None
        self._segments.clear()

    def _see_segments(self) -> None:
        self._segments |= shared_memory(members(self._family()))
        self._guard.shared_memory(self._segments)
        self._board.saw_shared_memory(self.spec.name, frozenset(self._segments))

    def _family(self) -> Family:
        sessions = frozenset({self._run.pid}) if self._run else frozenset()
        return Family(self._job.mark, sessions)


def _end_family(family: Family, segments: set[str]) -> None:
    end(lambda: members(family), term_seconds=0)
    remove_unused_shared_memory(segments)
