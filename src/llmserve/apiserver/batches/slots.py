"""Places for lines that run at the same time, divided evenly between tenants."""

import asyncio
from collections import Counter, deque

from llmserve.core.ids import TenantId


class LineSlots:
    """A free slot goes to the tenant that has the fewest and waits; within a tenant, to who came first.
    count: slots in all."""

    def __init__(self, count: int) -> None:
        self.count = self._free = count
        self._held: Counter[TenantId] = Counter()
        self._waiting: dict[TenantId, deque[asyncio.Future[None]]] = {}

    def __repr__(self) -> str:
        return f"<LineSlots free={self._free} held={dict(self._held)}>"

    async def take(self, tenant: TenantId) -> None:
        """Waits for a slot. Each is given back once."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self._deal()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(tenant)
            raise

    def give_back(self, tenant: TenantId) -> None:
        self._held[tenant] -= 1
        self._free += 1
        self._deal()

    def _deal(self) -> None:
        while self._free and (tenant := self._next()) is not None:
            turn = self._waiting[tenant].popleft()
            if not turn.done():  # nobody has given it up
                self._free -= 1
                self._held[tenant] += 1
                turn.set_result(None)

    def _next(self) -> TenantId | None:
        self._waiting = {tenant: turns for tenant, turns in self._waiting.items() if turns}
        return min(self._waiting, key=lambda tenant: self._held[tenant], default=None)
