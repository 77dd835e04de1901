"""Runs the processes of a plan: each when what it needs is ready, until asked to stop, then in order."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence

from llmserve.core.errors import LLMServeError
from llmserve.core.tasks import TaskOwner
from llmserve.runner.board import Board, ProcessState
from llmserve.runner.policy import stop_stages
from llmserve.runner.process_supervisor import ProcessSupervisor

_log = logging.getLogger(__name__)


class StopRequest:
    """The first signal asks for the ordered stop, the second forces. A terminal that is gone is such a
    signal too. Made inside a loop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.forced = asyncio.Event()
        self._terminal = Terminal()

    def on_signal(self) -> None:
        (self.forced if self.asked.is_set() else self.asked).set()

    def listen(self, on_hangup: Callable[[], None]) -> None:
        """on_hangup: for a SIGHUP that somebody sent."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.on_signal)
        loop.add_signal_handler(
            signal.SIGHUP, lambda: self.on_signal() if self._terminal.is_gone() else on_hangup()
        )


class Supervisor:
    """Life: run (once). Made inside a loop."""

    def __init__(self, keepers: Sequence[ProcessSupervisor], board: Board, stop: StopRequest) -> None:
        self._keepers = {keeper.spec.name: keeper for keeper in keepers}
        self._board = board
        self._stop = stop
        self._tasks = TaskOwner("supervisor")
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def run(self, on_ready: Callable[[], None], on_stopping: Callable[[], None]) -> None:
        """Until a stop is asked for. Whatever happens, no process of a role is left behind.
        Errors: StartFailed when a role cannot be started."""
        for name, keeper in self._keepers.items():
            self._tasks.spawn(name, self._keep(keeper), fatal=True)
        self._tasks.spawn("ready", self._when_ready(on_ready), fatal=True)
        stopped = self._tasks.spawn("stop", self._stop.asked.wait())
        try:
            await asyncio.wait(
                (self._failed, self._tasks.failed, stopped), return_when=asyncio.FIRST_COMPLETED
            )
            self._raise_failure()
        finally:
            on_stopping()
            await self._tasks.aclose()
            await self._stop_in_order()

    def _raise_failure(self) -> None:
        for failure in (self._failed, self._tasks.failed):
            if failure.done():
                raise failure.result()

    async def _keep(self, keeper: ProcessSupervisor) -> None:
        for name in keeper.spec.after:
            self._board.set(keeper.spec.name, ProcessState.WAITING, f"for {name} to be ready")
            await self._keepers[name].ready.wait()
        try:
            await keeper.keep()
        except LLMServeError as error:
            if not self._failed.done():
                self._failed.set_result(error)

    async def _when_ready(self, on_ready: Callable[[], None]) -> None:
        for keeper in self._keepers.values():
            await keeper.ready.wait()
        on_ready()

    async def _stop_in_order(self) -> None:
        """A stage begins when the one before has ended. What fails to stop is ended with the cluster."""
        for stage in stop_stages([keeper.spec for keeper in self._keepers.values()]):
            stops = (self._keepers[spec.name].stop(self._stop.forced) for spec in stage)
            for spec, result in zip(stage, await asyncio.gather(*stops, return_exceptions=True), strict=True):
                if isinstance(result, BaseException):
                    _log.error("%s: could not be stopped", spec.name, exc_info=result)


_TERMINAL = "/dev/tty"  # the kernel's name for the one that controls this process


class Terminal:
    """Made at the start. SIGHUP means two things: the terminal is gone, or please read your files again;
    this tells them apart."""

    def __init__(self) -> None:
        self._had_one = _has_terminal()

    def is_gone(self) -> bool:
        """There was one, and there is none now. Never true for a service, which has none."""
        return self._had_one and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
