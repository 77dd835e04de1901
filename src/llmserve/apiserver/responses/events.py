"""The events of a response that is streamed from the background: any number may follow, from any point."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from llmserve.apiserver.responses.base import ResponseKey

_MOST_KEPT = 128


class Events:
    def __init__(self) -> None:
        self.ended = False
        self._events: list[Any] = []
        self._changed = asyncio.Event()

    def add(self, event: Any) -> None:
        self._events.append(event)
        self._wake()

    def end(self) -> None:
        """No more will come. Whoever adds them ends them, however it goes."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, start: int) -> AsyncIterator[Any]:
        """Those from this number on, until they end."""
        index = max(0, start)
        while True:
            while index < len(self._events):
                yield self._events[index]
                index += 1
            if self.ended:
                return
            await self._changed.wait()


class KeptEvents:
    """Those of the latest streams; one that goes on is never forgotten."""

    def __init__(self) -> None:
        self._kept: OrderedDict[ResponseKey, Events] = OrderedDict()

    def open(self, key: ResponseKey) -> Events:
        events = self._kept[key] = Events()
        self._kept.move_to_end(key)
        ended = [one for one, held in self._kept.items() if held.ended]
        for one in ended[: max(0, len(self._kept) - _MOST_KEPT)]:
            del self._kept[one]
        return events

    def get(self, key: ResponseKey) -> Events | None:
        return self._kept.get(key)
