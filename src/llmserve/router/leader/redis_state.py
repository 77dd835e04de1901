"""Shared state in a Redis server (or Valkey): a few keys for each cluster, under `llmserve:{NAME}`.

Each script runs atomically in Redis, and uses its time. KEYS: the lease (a string that expires), the number
of the term, the saved state (a hash, for each StateKey). A lease is "EPOCH LEADER".
"""

from typing import Any

from llmserve.router.leader.state import Saved, StateKey, Term
from llmserve.rpc.redis_client import RedisAccess, RedisClient, milliseconds

_MILLISECONDS = """
local function milliseconds()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end
"""

# ARGV: leader, lease in ms. Answers the epoch that begins, or 0 and the lease that is.
_CAMPAIGN = (
    _MILLISECONDS
    + """
local lease = redis.call('GET', KEYS[1])
if lease then return {'0', lease} end
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local epoch = string.format('%.0f', math.max(last + 1, milliseconds()))
redis.call('SET', KEYS[2], epoch)
redis.call('SET', KEYS[1], epoch .. ' ' .. ARGV[1], 'NX', 'PX', ARGV[2])
return {epoch, ''}
"""
)

# ARGV: epoch, leader, lease in ms. A lease that is gone is given again while its term is the latest: it
# expired unseen, or Redis has come back without its data.
_RENEW = """
local mine = ARGV[1] .. ' ' .. ARGV[2]
local lease = redis.call('GET', KEYS[1])
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
if (lease and lease ~= mine) or last > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('SET', KEYS[1], mine, 'PX', ARGV[3])
return 1
"""

# ARGV: epoch, leader.
_RESIGN = """
if redis.call('GET', KEYS[1]) == ARGV[1] .. ' ' .. ARGV[2] then redis.call('DEL', KEYS[1]) end
return 1
"""

# ARGV: epoch, leader, text.
_SAVE = (
    _MILLISECONDS
    + """
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ' ' .. ARGV[2] then return 0 end
redis.call('HSET', KEYS[3], 'text', ARGV[3], 'saved_at', string.format('%.0f', milliseconds()))
return 1
"""
)

# Answers the text and its age in ms, or nothing.
_LOAD = (
    _MILLISECONDS
    + """
local found = redis.call('HMGET', KEYS[3], 'text', 'saved_at')
if not found[1] then return {} end
return {found[1], string.format('%.0f', math.max(0, milliseconds() - tonumber(found[2])))}
"""
)


class RedisState:
    """Errors: as of RedisClient."""

    def __init__(self, access: RedisAccess, cluster: str) -> None:
        # The braces keep the keys of a cluster on one server of a Redis Cluster.
        self._name = f"llmserve:{{{cluster}}}"
        self._client = RedisClient(access)

    async def campaign(self, leader: str, seconds: float) -> Term | str:
        epoch, lease = await self._run(_CAMPAIGN, leader, milliseconds(seconds))
        return Term(int(epoch), leader) if int(epoch) else lease.partition(" ")[2]

    async def renew(self, term: Term, seconds: float) -> bool:
        return bool(await self._run(_RENEW, term.epoch, term.leader, milliseconds(seconds)))

    async def resign(self, term: Term) -> None:
        await self._run(_RESIGN, term.epoch, term.leader)

    async def save(self, term: Term, text: str, key: StateKey = StateKey.SCHEDULER) -> bool:
        return bool(await self._run(_SAVE, term.epoch, term.leader, text, key=key))

    async def load(self, key: StateKey = StateKey.SCHEDULER) -> Saved | None:
        found = await self._run(_LOAD, key=key)
        return Saved(found[0], int(found[1]) / 1000) if found else None

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _run(self, script: str, *arguments: object, key: StateKey = StateKey.SCHEDULER) -> Any:
        keys = tuple(f"{self._name}:{end}" for end in ("lease", "epoch", key))
        return await self._client.run(script, keys, *arguments)
