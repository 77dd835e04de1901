"""The transfer engine of one rank, and the results that its inference engine takes."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from llmserve.core.errors import TransferError
from llmserve.core.ids import RequestId
from llmserve.core.request import HandoverReport
from llmserve.engines.kv_transfer.layout.blocks import KvLayout
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.transfer.base import Transport, nobody
from llmserve.transfer.devices import REACHED, Mark
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.engine.engine import SharedTransfers, TransferEngine

_LOOK_SECONDS = 0.001  # until the next look at a mark


async def reached(mark: Mark) -> None:
    """Waits until a mark is reached. Errors: TransferError when work before it failed."""
    while not mark.reached():  # noqa: ASYNC110 (a device calls nobody)
        await asyncio.sleep(_LOOK_SECONDS)


@dataclass(frozen=True, slots=True)
class _Behind:
    """failed: runs instead of the action, with the reason, when work before the mark failed."""

    mark: Mark
    action: Callable[[], object]
    failed: Callable[[str], object]


class RankEngine(TransferEngine):
    """A transfer engine over the KV memory of a rank. on_change: called on any thread when a result, or the
    end of a lease, can be taken; `changed` is set before. marks: runs actions that wait for a device."""

    def __init__(
        self,
        transports: Sequence[Transport],
        layout: KvLayout,
        policy: TransferPolicy | None = None,
        shared: SharedTransfers | None = None,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        """credentials: for the side channels of the rank. Errors: TransferError when the memory cannot be
        registered; the transports are closed then."""
        self.layout, self.credentials = layout, credentials
        self.changed = threading.Event()
        self.on_change: Callable[[], object] = nobody
        self.marks = MarkQueue(self)
        super().__init__(transports, layout.regions, policy, shared=shared)

    def note_change(self) -> None:
        self.changed.set()
        self.on_change()

    def act(self, action: Callable[[], object]) -> None:
        """Runs an action on the loop, soon. After `close` it does nothing: there is nothing to act on."""
        with suppress(TransferError):
            self.post(action)


class MarkQueue:
    """Actions on the loop of an engine that wait for what a device has still to do. Any thread."""

    def __init__(self, engine: RankEngine) -> None:
        self._engine = engine
        self._behind: deque[_Behind] = deque()
        self._task: asyncio.Task[None] | None = None

    def act(self, mark: Mark, action: Callable[[], object], failed: Callable[[str], object]) -> None:
        """Runs an action on the loop once the mark is reached, and after the actions of earlier calls of this
        thread. failed: runs instead, with the reason, when work before the mark failed."""
        if mark is REACHED and not self._behind:
            self._engine.act(action)
            return
        self._behind.append(_Behind(mark, action, failed))
        self._engine.act(self._start)

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = self._engine.spawn("marks", self._run())

    async def _run(self) -> None:
        while self._behind:
            first = self._behind[0]
            action = first.action
            try:
                await reached(first.mark)
            except TransferError as error:
                action = partial(first.failed, error.message)
            self._behind.popleft()
            asyncio.get_running_loop().call_soon(action)  # before whatever is posted from now on


@dataclass(frozen=True, slots=True)
class PullResult:
    """reason: why there are no data that are true; empty when there are. fallbacks: what failed before, as
    "transport: reason". seconds: from the call of `pull`, or of writing. tokens: what prefill drew, when
    a push brought it and the request is to go on from it. pushed: prefill wrote it. ended_unix: when this
    was made."""

    request_id: RequestId
    reason: str = ""
    transport: str = ""
    bytes: int = 0
    seconds: float = 0.0
    fallbacks: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    pushed: bool = False
    ended_unix: float = field(default_factory=time.time, compare=False)

    @property
    def ok(self) -> bool:
        return not self.reason

    @property
    def report(self) -> HandoverReport:
        transport = self.transport if self.ok else ""
        return HandoverReport(
            transport,
            self.bytes,
            self.seconds,
            self.fallbacks,
            self.reason,
            self.pushed,
            self.ended_unix,
        )


class Results:
    """Pulls, or pushes, from their start on the engine's thread to the result that the engine takes. Any
    thread."""

    def __init__(self, on_result: Callable[[], object]) -> None:
        self._on_result = on_result
        self._lock = threading.Lock()
        self._active: set[RequestId] = set()
        self._finished: deque[PullResult] = deque()

    @property
    def active_count(self) -> int:
        """Those that were begun and have no result yet."""
        return len(self._active)

    def begin(self, request_id: RequestId) -> bool:
        """False: it was begun before, and has no result yet."""
        with self._lock:
            is_new = request_id not in self._active
            self._active.add(request_id)
        return is_new

    def drop(self, request_id: RequestId) -> None:
        """It could not be started: no result follows."""
        with self._lock:
            self._active.discard(request_id)

    def conclude(self, result: PullResult) -> None:
        self.drop(result.request_id)
        self._finished.append(result)
        self._on_result()

    def take(self) -> list[PullResult]:
        """Each result once."""
        taken = []
        with suppress(IndexError):
            while True:
                taken.append(self._finished.popleft())
        return taken
