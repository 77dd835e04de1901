"""A client of the Redis server (or Valkey) of `state.redis`. Imported only with `state.backend: redis`."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from llmserve.config.conflict import Conflict
from llmserve.core.errors import StateUnavailable


class RedisClient:
    """Runs scripts, each at once or not at all: the caller of a call that failed tries it again.

    url: redis://HOST:PORT/DB, or rediss:// with TLS. call_seconds: the deadline of each call, connecting
    included. ca: a file with the authorities of the server's certificate; None: those of the system. Connects
    when it is first asked. Errors of the constructor: ManifestError for a wrong url.
    """

    def __init__(self, url: str, *, password: str | None, call_seconds: float, ca: str | None = None) -> None:
        self._where = url.rpartition("@")[2].removeprefix("redis://").removeprefix("rediss://")
        options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "decode_responses": True}
        options |= {"socket_timeout": call_seconds, "socket_connect_timeout": call_seconds}
        if password is not None:
            options["password"] = password
        if ca is not None:
            options["ssl_ca_certs"] = ca
        try:
            self._redis: Any = Redis.from_url(url, **options)
        except ValueError as error:
            raise Conflict((("state", "redis", "url"),), str(error)).as_error() from error

    async def run(self, script: str, keys: Sequence[str], *arguments: object) -> Any:
        """Returns what the Lua script answers. Errors: StateUnavailable."""
        try:
            return await self._redis.eval(script, len(keys), *keys, *arguments)
        except (RedisError, OSError) as error:
            raise StateUnavailable(f"Redis at {self._where}: {str(error) or type(error).__name__}") from error

    async def aclose(self) -> None:
        """Idempotent."""
        await self._redis.aclose()


def milliseconds(seconds: float) -> int:
    """Returns a time as Redis wants it, at least 1."""
    return max(1, int(seconds * 1000))
