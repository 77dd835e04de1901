"""Runs the processes of a plan: each when what it needs is ready, until asked to stop, then in order."""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence

from llmserve.config.plan import ProcessSpec
from llmserve.core.errors import LLMServeError, StartFailed
from llmserve.core.tasks import TaskOwner, first_done
from llmserve.runner.board import Board, ProcessState
from llmserve.runner.process.policy import stop_stages
from llmserve.runner.process.supervisor import ProcessSupervisor

_log = logging.getLogger(__name__)
_TERMINAL = "/dev/tty"  # the kernel's name for the terminal that controls this process


class StopRequest:
    """The first signal asks for the ordered stop, the second forces. The end of the terminal counts as such a
    signal. Made inside a loop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.forced = asyncio.Event()
        self._had_terminal = _has_terminal()

    def on_signal(self) -> None:
        (self.forced if self.asked.is_set() else self.asked).set()

    def listen(self, on_hangup: Callable[[], None]) -> None:
        """SIGHUP means two things: the terminal is gone, or somebody asks to read the files again
        (on_hangup). A service never had a terminal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.on_signal)

        def hangup() -> None:
            is_gone = self._had_terminal and not _has_terminal()
            (self.on_signal if is_gone else on_hangup)()

        loop.add_signal_handler(signal.SIGHUP, hangup)


def _has_terminal() -> bool:
    try:
        os.close(os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


Wants = Callable[[ProcessSpec], Awaitable[bool]]


async def _all(spec: ProcessSpec) -> bool:
    return True


class Supervisor:
    """Life: run (once), and add and remove meanwhile. wants: whether a process of the plan is to be started;
    one that is not wanted waits until it is removed. Made inside a loop."""

    def __init__(
        self,
        supervisors: Sequence[ProcessSupervisor],
        board: Board,
        stop: StopRequest,
        wants: Wants = _all,
    ) -> None:
        self._supervisors = {one.spec.name: one for one in supervisors}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._removed = {name: asyncio.Event() for name in self._supervisors}
        self._wants, self._stopping = wants, False
        self._board = board
        self._stop = stop
        self._tasks = TaskOwner("supervisor")
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def run(self, on_ready: Callable[[], None], on_stopping: Callable[[], None]) -> None:
        """Returns after the stop that was asked for. No process of a role is left behind, however it ends.
        Errors: StartFailed when a role cannot be started."""
        for one in self._supervisors.values():
            self._begin(one, self._failed, self._wants)
        self._tasks.spawn("ready", self._when_ready(on_ready), fatal=True)
        stopped = self._tasks.spawn("stop", self._stop.asked.wait())
        try:
            await asyncio.wait(
                (self._failed, self._tasks.failed, stopped), return_when=asyncio.FIRST_COMPLETED
            )
            for failure in (self._failed, self._tasks.failed):
                if failure.done():
                    raise failure.result()
        finally:
            self._stopping = True
            on_stopping()
            await self._tasks.aclose()
            await self._stop_in_order(list(self._supervisors.values()))

    async def add(self, supervisors: Sequence[ProcessSupervisor]) -> None:
        """Starts more processes, which have rows on the board. Returns when all are ready. Errors: that of
        the first that cannot be started; the caller then removes them all. StartFailed while the cluster
        stops."""
        if self._stopping:
            raise StartFailed("the cluster stops")
        failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        for one in supervisors:
            self._supervisors[one.spec.name] = one
            self._begin(one, failed, _all)
        await first_done("add", _ready(supervisors), _done(failed))
        if failed.done():
            raise failed.result()

    async def remove(self, names: Sequence[str]) -> None:
        """Stops processes, which have as long as at the end of the cluster, and forgets them. Unknown ones
        are removed already."""
        found = [self._supervisors[name] for name in names if name in self._supervisors]
        for one in found:
            if (running := self._running.pop(one.spec.name, None)) is not None:
                running.cancel()
                await asyncio.wait([running])
        await self._stop_in_order(found)
        for one in found:
            self._supervisors.pop(one.spec.name, None)
            if (removed := self._removed.get(one.spec.name)) is not None:
                removed.set()

    def _begin(self, one: ProcessSupervisor, failed: asyncio.Future[BaseException], wants: Wants) -> None:
        name = one.spec.name
        self._running[name] = self._tasks.spawn(name, self._supervise(one, failed, wants), fatal=True)

    async def _supervise(
        self, one: ProcessSupervisor, failed: asyncio.Future[BaseException], wants: Wants
    ) -> None:
        for name in one.spec.after:
            self._board.set(one.spec.name, ProcessState.WAITING, f"for {name} to be ready")
            await self._supervisors[name].ready.wait()
        if not await wants(one.spec):
            return
        try:
            await one.run()
        except LLMServeError as error:
            if not failed.done():
                failed.set_result(error)

    async def _when_ready(self, on_ready: Callable[[], None]) -> None:
        for one in list(self._supervisors.values()):
            await first_done("ready", one.ready.wait(), self._removed[one.spec.name].wait())
        on_ready()

    async def _stop_in_order(self, supervisors: Sequence[ProcessSupervisor]) -> None:
        """A stage begins when the one before has ended. What fails to stop is ended with the cluster."""
        by_name = {one.spec.name: one for one in supervisors}
        for stage in stop_stages([one.spec for one in supervisors]):
            stops = (by_name[spec.name].stop(self._stop.forced) for spec in stage)
            for spec, result in zip(stage, await asyncio.gather(*stops, return_exceptions=True), strict=True):
                if isinstance(result, BaseException):
                    _log.error("%s: could not be stopped", spec.name, exc_info=result)


async def _ready(supervisors: Sequence[ProcessSupervisor]) -> None:
    for one in supervisors:
        await one.ready.wait()


async def _done(future: asyncio.Future[BaseException]) -> None:
    await asyncio.wait([future])
