"""Shared state in a Redis server (or Valkey): three keys for each cluster, under `llmserve:{NAME}`.

The one module that imports redis, and only routers with `state.backend: redis` import it.
"""

from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from llmserve.config.conflict import Conflict
from llmserve.core.errors import StateUnavailable
from llmserve.router.state import scripts
from llmserve.router.state.base import Saved, Term


class RedisState:
    """url: redis://HOST:PORT/DB, or rediss:// with TLS. call_seconds: of each call, connecting included.
    Connects when it is first asked. Errors: ManifestError for a url that is none."""

    def __init__(self, url: str, cluster: str, *, password: str | None, call_seconds: float) -> None:
        # The braces keep the keys of a cluster on one server of a Redis Cluster.
        name = f"llmserve:{{{cluster}}}"
        self._keys = (f"{name}:lease", f"{name}:epoch", f"{name}:scheduler")
        self._where = url.rpartition("@")[2].removeprefix("redis://").removeprefix("rediss://")
        # A call that is tried again later by whoever made it is not tried again here.
        options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "decode_responses": True}
        options |= {"socket_timeout": call_seconds, "socket_connect_timeout": call_seconds}
        if password is not None:
            options["password"] = password
        try:
            self._client: Any = Redis.from_url(url, **options)
        except ValueError as error:
            raise Conflict((("state", "redis", "url"),), str(error)).as_error() from error

    async def campaign(self, leader: str, seconds: float) -> Term | str:
        epoch, lease = await self._run(scripts.CAMPAIGN, leader, _milliseconds(seconds))
        return Term(int(epoch), leader) if int(epoch) else lease.partition(" ")[2]

    async def renew(self, term: Term, seconds: float) -> bool:
        return bool(await self._run(scripts.RENEW, term.epoch, term.leader, _milliseconds(seconds)))

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
        try:
            return await self._client.eval(script, len(self._keys), *self._keys, *arguments)
        except (RedisError, OSError) as error:
            raise StateUnavailable(f"Redis at {self._where}: {str(error) or type(error).__name__}") from error


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
