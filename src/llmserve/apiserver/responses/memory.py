"""A response store in this process: for the only apiserver of a cluster, and for tests."""

from collections import OrderedDict
from dataclasses import dataclass

from llmserve.apiserver.responses.base import ResponseKey, Stage, StoredResponse
from llmserve.core.clock import Clock


@dataclass(slots=True)
class _Entry:
    stage: Stage
    text: str
    forgotten_at: float
    lost_at: float = float("inf")


class MemoryResponses:
    """Keeps each for keep_seconds, and most_bytes of texts at most: the oldest go first."""

    def __init__(self, clock: Clock, keep_seconds: float, most_bytes: int) -> None:
        self._clock, self._keep_seconds, self._most_bytes = clock, keep_seconds, most_bytes
        self._entries: OrderedDict[ResponseKey, _Entry] = OrderedDict()
        self._bytes = 0

    async def put(self, key: ResponseKey, text: str) -> None:
        self._keep(key, Stage.ENDED, text)

    async def begin(self, key: ResponseKey, text: str, lease_seconds: float) -> None:
        self._keep(key, Stage.RUNNING, text, self._clock.now() + lease_seconds)

    async def renew(self, key: ResponseKey, lease_seconds: float) -> bool:
        entry = self._running(key)
        if entry is None:
            return False
        entry.lost_at = self._clock.now() + lease_seconds
        return True

    async def end(self, key: ResponseKey, text: str) -> bool:
        return self._change(key, Stage.ENDED, text)

    async def cancel(self, key: ResponseKey, text: str) -> bool:
        return self._change(key, Stage.CANCELLED, text)

    async def get(self, key: ResponseKey) -> StoredResponse | None:
        self._forget_old()
        entry = self._entries.get(key)
        if entry is None:
            return None
        lost = entry.stage is Stage.RUNNING and self._clock.now() >= entry.lost_at
        return StoredResponse(Stage.LOST if lost else entry.stage, entry.text)

    async def aclose(self) -> None:
        """Nothing is open."""

    def _running(self, key: ResponseKey) -> _Entry | None:
        self._forget_old()
        entry = self._entries.get(key)
        return entry if entry is not None and entry.stage is Stage.RUNNING else None

    def _change(self, key: ResponseKey, stage: Stage, text: str) -> bool:
        if self._running(key) is None:
            return False
        self._keep(key, stage, text)
        return True

    def _keep(self, key: ResponseKey, stage: Stage, text: str, lost_at: float = float("inf")) -> None:
        """As the newest, so that the order is that in which they are forgotten."""
        if key in self._entries:
            self._drop(key)
        self._entries[key] = _Entry(stage, text, self._clock.now() + self._keep_seconds, lost_at)
        self._bytes += _size(text)
        self._forget_old()

    def _forget_old(self) -> None:
        while self._entries:
            key, oldest = next(iter(self._entries.items()))
            if self._bytes <= self._most_bytes and oldest.forgotten_at > self._clock.now():
                return
            self._drop(key)

    def _drop(self, key: ResponseKey) -> None:
        self._bytes -= _size(self._entries.pop(key).text)


def _size(text: str) -> int:
    """Of ASCII, which JSON is here."""
    return len(text)
