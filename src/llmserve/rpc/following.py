"""Which of several routers to talk to: the one that leads, once it is found."""

from collections.abc import Sequence

from llmserve.rpc.backoff import Backoff

# A leader that ended is followed within seconds: those who look for the next one look often.
_LONGEST_PAUSE_SECONDS = 0.2


class Following:
    """Addresses in turn. Stays with one until it fails, then tries each of the others without a pause, and
    pauses before the next round: shortly when there are several, longer and longer when there is one."""

    def __init__(self, addresses: Sequence[str]) -> None:
        assert addresses, "there is nobody to follow"
        self._addresses = tuple(addresses)
        self._current = 0
        self._failed = 0  # in a row
        self._backoff = Backoff(max_seconds=_LONGEST_PAUSE_SECONDS) if self.has_others else Backoff()

    @property
    def address(self) -> str:
        """The one to talk to."""
        return self._addresses[self._current]

    @property
    def has_others(self) -> bool:
        return len(self._addresses) > 1

    def __str__(self) -> str:
        return " or ".join(self._addresses)

    def worked(self) -> None:
        self._failed = 0
        self._backoff.reset()

    async def failed(self) -> None:
        """To the next one. As Backoff.pause for a task that was cancelled."""
        self._failed += 1
        self._current = (self._current + 1) % len(self._addresses)
        if self._failed % len(self._addresses) == 0:
            await self._backoff.pause()
        else:
            self._backoff.check()
