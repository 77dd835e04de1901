"""A response store in the Redis server (or Valkey) of `state.redis`, for all apiservers of a cluster.

Two keys for each response, under `llmserve:{NAME}:response`: a hash of its stage and text, and the lease of
one that is being made, a string that expires.
"""

from typing import Any

from llmserve.apiserver.responses.store import ResponseKey, ResponseStage, StoredResponse
from llmserve.rpc.redis_client import RedisAccess, RedisClient, milliseconds

# KEYS: the response, its lease. ARGV: stage, text, ms to keep it, ms of the lease or 0.
_KEEP = """
redis.call('HSET', KEYS[1], 'stage', ARGV[1], 'text', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if ARGV[4] == '0' then redis.call('DEL', KEYS[2]) else redis.call('SET', KEYS[2], '', 'PX', ARGV[4]) end
return 1
"""
_IF_RUNNING = "if redis.call('HGET', KEYS[1], 'stage') ~= 'running' then return 0 end\n"
_CHANGE = _IF_RUNNING + _KEEP
# ARGV: ms of the lease.
_RENEW = f"{_IF_RUNNING} redis.call('SET', KEYS[2], '', 'PX', ARGV[1]) return 1"
# Answers stage, text and whether there is a lease.
_GET = """
local found = redis.call('HMGET', KEYS[1], 'stage', 'text')
return {found[1], found[2], redis.call('EXISTS', KEYS[2])}
"""


class RedisResponses:
    """Errors: as of RedisClient."""

    def __init__(self, access: RedisAccess, cluster: str, keep_seconds: float) -> None:
        # The braces keep the keys of a cluster on one server of a Redis Cluster.
        self._prefix = f"llmserve:{{{cluster}}}:response"
        self._keep_ms = milliseconds(keep_seconds)
        self._client = RedisClient(access)

    async def put(self, key: ResponseKey, text: str) -> None:
        await self._run(_KEEP, key, ResponseStage.ENDED, text, self._keep_ms, 0)

    async def begin(self, key: ResponseKey, text: str, lease_seconds: float) -> None:
        await self._run(_KEEP, key, ResponseStage.RUNNING, text, self._keep_ms, milliseconds(lease_seconds))

    async def renew(self, key: ResponseKey, lease_seconds: float) -> bool:
        return bool(await self._run(_RENEW, key, milliseconds(lease_seconds)))

    async def end(self, key: ResponseKey, text: str) -> bool:
        return bool(await self._run(_CHANGE, key, ResponseStage.ENDED, text, self._keep_ms, 0))

    async def cancel(self, key: ResponseKey, text: str) -> bool:
        return bool(await self._run(_CHANGE, key, ResponseStage.CANCELLED, text, self._keep_ms, 0))

    async def get(self, key: ResponseKey) -> StoredResponse | None:
        stage, text, has_lease = await self._run(_GET, key)
        if stage is None:
            return None
        found = ResponseStage(stage)
        return StoredResponse(
            ResponseStage.LOST if found is ResponseStage.RUNNING and not has_lease else found, text
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _run(self, script: str, key: ResponseKey, *arguments: object) -> Any:
        # The length keeps a tenant's name, which may have any sign in it, apart from the id.
        name = f"{self._prefix}:{len(key.tenant)}:{key.tenant}:{key.response_id}"
        return await self._client.run(script, (name, f"{name}:lease"), *map(str, arguments))
