"""The turns of the ucx transport. Everything that uses UCX happens in a turn, one at a time: in a turn of the
transport's thread, which sleeps in between, or in a turn of a caller that finds the thread asleep."""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from llmserve.core.errors import TransferError
from llmserve.core.logs import ScarceWarnings
from llmserve.transfer.ucx import wire
from llmserve.transfer.ucx.library import UcxWorker, UnexpectedMessage

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_CALL_SECONDS = 30.0
_DRAIN_SECONDS = 5.0
_IDLE_SECONDS = 1.0  # ucxx warns that UCX may miss an event, so the thread never sleeps for long
_BUSY_SECONDS = 0.02


class LoopMember(Protocol):
    """An end of a connection. All its methods are called in turns."""

    number: int  # the number of its link, which messages to it carry

    def deliver(self, message: wire.ControlMessage) -> None: ...

    def advance(self, now: float) -> bool:
        """Does what can be done now, and says whether there was anything."""

    def lose(self, reason: str) -> None:
        """Gives the connection up. Idempotent."""

    @property
    def busy(self) -> bool:
        """Says whether it waits for bytes or for something that has a deadline."""

    @property
    def gone(self) -> bool:
        """Says whether the connection is lost and uses no memory, so that it may be dropped."""


class UcxLoop:
    """Any thread may call `call`, `post` and `close`. Everything else happens in turns."""

    def __init__(self) -> None:
        """Errors: TransportUnavailable."""
        self.worker = UcxWorker()
        self.on_hello: Callable[[wire.ControlMessage], None] | None = None  # receives every HELLO
        self._warnings = ScarceWarnings(_log)
        self._members: dict[int, LoopMember] = {}
        self._last_number = 0
        self._arriving: list[UnexpectedMessage] = []
        self._inbox: deque[Callable[[], object]] = deque()
        self._turns = threading.Lock()  # the holder uses UCX
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events = select.epoll()
        for fd in (self._wake_fd, self.worker.event_fd):
            self._events.register(fd, select.EPOLLIN)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="kv-ucx", daemon=True)
        self._thread.start()

    # -- from any thread

    def call(self, action: Callable[[], _T]) -> _T:
        """Runs an action in a turn and waits for it. Errors: those of the action; TransferError after 30
        s."""
        answer: Future[_T] = Future()

        def run() -> None:
            try:
                answer.set_result(action())
            except BaseException as error:
                answer.set_exception(error)

        self.post(run)
        try:
            return answer.result(_CALL_SECONDS)
        except TimeoutError as error:
            raise TransferError("ucx: its thread does not answer") from error

    def post(self, action: Callable[[], object]) -> None:
        """Runs an action: in a turn of the caller while the thread sleeps, because waking it takes longer
        than the turn, or else in the thread's next turn."""
        self._inbox.append(action)
        if self._turns.acquire(blocking=False):
            try:
                self._turn()
            finally:
                self._turns.release()
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Gives up every connection and joins the thread. Call it once."""

        def stop() -> None:
            self._stopping = True

        try:
            self.call(lambda: self.drain("the transport was closed"))
        except TransferError as error:
            _log.warning("%s", error.message)
        self.post(stop)
        self._thread.join(_CALL_SECONDS)
        self.worker.close()
        self._events.close()
        os.close(self._wake_fd)

    # -- in a turn

    def next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def add(self, member: LoopMember) -> None:
        self._members[member.number] = member

    def renumber(self, member: LoopMember) -> None:
        """Gives a member a new number. Messages to its old number are dropped."""
        del self._members[member.number]
        member.number = self.next_number()
        self.add(member)

    def drain(self, reason: str) -> None:
        """Gives up every connection. When this returns no memory is in use. Errors: TransferError."""
        for member in list(self._members.values()):
            member.lose(reason)
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._members:
            self._turn()
            if time.monotonic() > deadline:
                raise TransferError("ucx: messages that were given up do not end")
            time.sleep(0.0002)

    def _run(self) -> None:
        while not self._stopping:
            with self._turns:
                busy = self._turn() or not self.worker.arm()
                seconds = self._nap_seconds()
            if not busy:
                self._sleep(seconds)

    def _nap_seconds(self) -> float:
        return _BUSY_SECONDS if any(member.busy for member in self._members.values()) else _IDLE_SECONDS

    def _sleep(self, seconds: float) -> None:
        for fd, _ in self._events.poll(seconds):
            if fd == self._wake_fd:
                os.eventfd_read(fd)

    def _turn(self) -> bool:
        """Does what can be done now, and says whether there was anything."""
        try:
            self.worker.progress()
            return self._take_inbox() | self._take_arrivals() | self._advance()
        except Exception:  # an error of one message or connection; the others continue
            _log.exception("ucx: the transport met an error")
            return False

    def _advance(self) -> bool:
        worked = False
        now = time.monotonic()
        for member in list(self._members.values()):
            worked |= member.advance(now)
            if member.gone:
                del self._members[member.number]
        return worked

    def _take_inbox(self) -> bool:
        worked = bool(self._inbox)
        while self._inbox:
            self._inbox.popleft()()
        return worked

    def _take_arrivals(self) -> bool:
        arrivals = [*self._arriving, *self.worker.arrivals()]
        if not arrivals:
            return False
        complete = [arrival for arrival in arrivals if arrival.request.over]
        self._arriving = [arrival for arrival in arrivals if arrival not in complete]
        for arrival in complete:  # other tags are data of a part that was given up
            if arrival.tag == wire.CONTROL_TAG and not arrival.request.failure:
                self._deliver(arrival.request.buffer.tobytes())
        return bool(complete)

    def _deliver(self, raw: bytes) -> None:
        try:
            message = wire.unpack(raw)
        except TransferError as error:
            self._warnings.warning("%s", error.message)
            return
        if message.kind is wire.MessageKind.HELLO:
            if self.on_hello:
                self.on_hello(message)
        elif member := self._members.get(message.link):
            member.deliver(message)
