"""Keys in the Redis server (or Valkey) of `state.redis`, for apiservers on several machines.

Under `llmserve:{NAME}:keys`: a hash of the keys, another of their last uses, and a random version, which is a
new one after each change of the first.
"""

from collections.abc import Mapping, Sequence
from secrets import token_hex

from pydantic import ValidationError

from llmserve.apiserver.auth.stores.stored_key import StoredKey
from llmserve.core.errors import InvalidRequest, StateUnavailable
from llmserve.rpc.redis_client import RedisAccess, RedisClient

# KEYS: the keys, their uses, the version. ARGV: the version that is known.
_READ = """
local version = redis.call('GET', KEYS[3])
if version == ARGV[1] then return {version} end
return {version, redis.call('HVALS', KEYS[1]), redis.call('HGETALL', KEYS[2])}
"""
# ARGV: the new version, id, key.
_ADD = "redis.call('SET', KEYS[3], ARGV[1]) return redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])"
# ARGV: the new version, id.
_REMOVE = """
redis.call('SET', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[2])
return redis.call('HDEL', KEYS[1], ARGV[2])
"""
# ARGV: id, time, ... of each use.
_NOTE = """
for at = 1, #ARGV, 2 do
  local known = tonumber(redis.call('HGET', KEYS[2], ARGV[at]) or '0')
  if redis.call('HEXISTS', KEYS[1], ARGV[at]) == 1 and tonumber(ARGV[at + 1]) > known then
    redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  end
end
return 1
"""


class RedisKeys:
    """Errors of the constructor: as of RedisClient. used_at of what is read is that of the last change
    of any key. A server that has lost its memory loses no key that this process knows."""

    def __init__(self, access: RedisAccess, cluster: str) -> None:
        # The braces keep the keys of a cluster on one server of a Redis Cluster.
        prefix = f"llmserve:{{{cluster}}}:keys"
        self._names = (prefix, f"{prefix}:used", f"{prefix}:version")
        self._client = RedisClient(access)
        self._version: str | None = None
        self._keys: tuple[StoredKey, ...] = ()

    async def read(self) -> Sequence[StoredKey]:
        version, *changed = await self._client.run(_READ, self._names, self._version or "")
        if version is None and self._version is not None:
            raise StateUnavailable("Redis has lost the keys of this cluster: what it had goes on to count")
        if changed:
            texts, uses = changed
            used_at = dict(zip(uses[::2], uses[1::2], strict=True))
            self._keys = tuple(_parsed(text, used_at) for text in texts)
            self._version = version
        return self._keys

    async def add(self, key: StoredKey) -> None:
        await self._client.run(
            _ADD, self._names, token_hex(8), key.id, key.model_dump_json(exclude_none=True)
        )

    async def remove(self, key_id: str) -> bool:
        return bool(await self._client.run(_REMOVE, self._names, token_hex(8), key_id))

    async def note_uses(self, used_at: Mapping[str, int]) -> None:
        pairs = [text for name, at in used_at.items() for text in (name, str(at))]
        await self._client.run(_NOTE, self._names, *pairs)

    async def aclose(self) -> None:
        await self._client.aclose()


def _parsed(text: str, used_at: Mapping[str, str]) -> StoredKey:
    try:
        key = StoredKey.model_validate_json(text)
    except ValidationError as error:
        wrong = error.errors(include_input=False)[0]["msg"]
        raise InvalidRequest(f"what Redis has of a key cannot be read: {wrong}") from None
    return key.model_copy(update={"used_at": int(used_at[key.id])}) if key.id in used_at else key
