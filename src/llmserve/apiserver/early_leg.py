"""A leg that is open before its time has come."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from types import TracebackType

from llmserve.core.request import EngineOutput


class EarlyLeg:
    """Outputs of a leg that may fail, or begin, while something else is done first. Iterated once; the
    leg itself is its caller's to close."""

    def __init__(self, outputs: AsyncIterator[EngineOutput]) -> None:
        self._outputs = outputs

    async def __aenter__(self) -> "EarlyLeg":
        self._first = asyncio.ensure_future(anext(self._outputs))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _ended(self._first)

    async def after(self, work: Coroutine[None, None, None]) -> None:
        """Does the work. When the leg fails meanwhile, cancels the work and raises the leg's error."""
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait((self._first, working), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self._first.result()
            await working
        finally:
            await _ended(working)

    async def __aiter__(self) -> AsyncIterator[EngineOutput]:
        yield await self._first
        async for output in self._outputs:
            yield output


async def _ended(task: asyncio.Future[EngineOutput] | asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
