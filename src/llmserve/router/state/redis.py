"""Shared state in a Redis server (or Valkey): three keys for each cluster, under `llmserve:{NAME}`.

The one module that imports redis, and only routers with `state.backend: redis` import it.
"""

from typing import Any

from llmserve.router.state import scripts
from llmserve.router.state.base import Saved, Term
from llmserve.rpc.redis_client import RedisClient, milliseconds


class RedisState:
    """url, password, call_seconds: as of RedisClient, and so are the errors."""

    def __init__(self, url: str, cluster: str, *, password: str | None, call_seconds: float) -> None:
        # The braces keep the keys of a cluster on one server of a Redis Cluster.
        name = f"llmserve:{{{cluster}}}"
        self._keys = (f"{name}:lease", f"{name}:epoch", f"{name}:scheduler")
        self._client = RedisClient(url, password=password, call_seconds=call_seconds)

    async def campaign(self, leader: str, seconds: float) -> Term | str:
        epoch, lease = await self._run(scripts.CAMPAIGN, leader, milliseconds(seconds))
        return Term(int(epoch), leader) if int(epoch) else lease.partition(" ")[2]

    async def renew(self, term: Term, seconds: float) -> bool:
        return bool(await self._run(scripts.RENEW, term.epoch, term.leader, milliseconds(seconds)))

    async def resign(self, term: Term) -> None:
        await self._run(scripts.RESIGN, term.epoch, term.leader)

    async def save(self, term: Term, text: str) -> bool:
        return bool(await self._run(scripts.SAVE, term.epoch, term.leader, text))

    async def load(self) -> Saved | None:
        found = await self._run(scripts.LOAD)
        return Saved(found[0], int(found[1]) / 1000) if found else None

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _run(self, script: str, *arguments: object) -> Any:
        return await self._client.run(script, self._keys, *arguments)
