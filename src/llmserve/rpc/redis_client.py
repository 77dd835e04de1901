"""A client of the Redis server (or Valkey) of `state.redis`. Only a cluster that has it needs the package."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmserve.config.conflict import Conflict, refuse
from llmserve.config.refusals import unset_password
from llmserve.config.schema import State
from llmserve.core.errors import StateUnavailable


@dataclass(frozen=True, slots=True)
class RedisAccess:
    """How the server is reached. url: redis://HOST:PORT/DB, or rediss:// with TLS. call_seconds: the deadline
    of each call, connecting included. ca: a file with the authorities of the server's certificate; None:
    those of the system."""

    url: str
    call_seconds: float
    password: str | None = None
    ca: str | None = None

    @classmethod
    def of(cls, state: State, environ: Mapping[str, str], call_seconds: float) -> "RedisAccess":
        """state: with a server. Errors: ManifestError when the password is missing."""
        assert state.redis is not None, "a rule of the manifest"
        refuse(unset_password(state, environ))
        variable = state.redis.password_env
        password = environ[variable] if variable is not None else None
        return cls(state.redis.url, call_seconds, password, state.redis.ca)


class RedisClient:
    """Runs scripts, each at once or not at all: the caller of a call that failed tries it again. Connects
    when it is first asked. Errors of the constructor: ManifestError for a wrong url, or without the
    package."""

    def __init__(self, access: RedisAccess) -> None:
        refuse(missing_package())
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        self._where = access.url.rpartition("@")[2].removeprefix("redis://").removeprefix("rediss://")
        self._errors = (RedisError, OSError)
        self._call_seconds = seconds = access.call_seconds
        options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "decode_responses": True}
        options |= {"socket_timeout": seconds, "socket_connect_timeout": seconds}
        if access.password is not None:
            options["password"] = access.password
        if access.ca is not None:
            options["ssl_ca_certs"] = access.ca
        try:
            self._redis: Any = Redis.from_url(access.url, **options)
        except ValueError as error:
            raise Conflict((("state", "redis", "url"),), str(error)).as_error() from error

    async def run(self, script: str, keys: Sequence[str], *arguments: object) -> Any:
        """Returns what the Lua script answers. Errors: StateUnavailable."""
        try:
            async with asyncio.timeout(self._call_seconds):  # those of the sockets are for each answer
                return await self._redis.eval(script, len(keys), *keys, *arguments)
        except self._errors as error:
            raise StateUnavailable(f"Redis at {self._where}: {str(error) or type(error).__name__}") from error

    async def aclose(self) -> None:
        """Idempotent."""
        await self._redis.aclose()


def missing_package() -> Iterator[Conflict]:
    """Yields what is wrong when the package of Redis is not installed."""
    try:
        import redis.asyncio  # noqa: F401
    except ModuleNotFoundError as error:
        message = f"redis needs a package: {error.msg}; pip install 'redis>=5'"
        yield Conflict((("state", "redis"),), message)


def milliseconds(seconds: float) -> int:
    """Returns a time as Redis wants it, at least 1."""
    return max(1, int(seconds * 1000))
