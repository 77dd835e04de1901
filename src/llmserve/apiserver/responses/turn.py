"""What one HTTP request has at hand of stored responses.

vLLM's handler looks responses up at once and by their id alone, in dictionaries. In their place it gets
views of the Turn of the request that asks, which is filled from the store before: so nothing stays in
this process, and nobody sees what is another tenant's.
"""

import asyncio
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Turn:
    """responses, messages: by response id. began: whether the background has begun, or why it could not."""

    responses: dict[str, Any] = field(default_factory=dict)
    messages: dict[str, Any] = field(default_factory=dict)
    began: asyncio.Future[None] | None = None


class View(MutableMapping[str, Any]):
    """A dictionary that is another one for each request."""

    def __init__(self, current: Callable[[], dict[str, Any]]) -> None:
        self._current = current

    def __getitem__(self, key: str) -> Any:
        return self._current()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._current()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._current()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current())

    def __len__(self) -> int:
        return len(self._current())
