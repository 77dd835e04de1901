"""Several roles in one process."""

import asyncio

import pytest

from llmserve.control import Roles
from llmserve.core.errors import StartFailed


class FakeRole:
    def __init__(self, name: str, log: list[str], fails: bool = False) -> None:
        self._name, self._log, self._fails = name, log, fails
        self.ended = asyncio.Event()

    async def start(self) -> None:
        if self._fails:
            raise StartFailed(f"{self._name} cannot")
        self._log.append(f"start {self._name}")

    async def wait(self) -> None:
        await self.ended.wait()

    async def aclose(self) -> None:
        self._log.append(f"close {self._name}")


async def test_they_start_in_order_and_stop_in_reverse() -> None:
    log: list[str] = []
    roles = Roles([FakeRole("a", log), FakeRole("b", log)])
    await roles.start()
    await roles.aclose()
    await roles.aclose()
    assert log == ["start a", "start b", "close b", "close a"]


async def test_a_failed_start_closes_what_was_begun() -> None:
    log: list[str] = []
    roles = Roles([FakeRole("a", log), FakeRole("b", log, fails=True), FakeRole("c", log)])
    with pytest.raises(StartFailed):
        await roles.start()
    await roles.aclose()
    assert log == ["start a", "close b", "close a"]


async def test_when_one_ends_all_have() -> None:
    first, second = FakeRole("a", []), FakeRole("b", [])
    roles = Roles([first, second])
    await roles.start()
    waiting = asyncio.create_task(roles.wait())
    second.ended.set()
    with pytest.raises(ExceptionGroup):
        await waiting
    await roles.aclose()
