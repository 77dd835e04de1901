"""Who is still inside, so that a door is closed behind the last one."""

import asyncio
from types import TracebackType


class Calls:
    """`with calls:` around each call."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def ended(self) -> None:
        """All of them."""
        await self._none.wait()
