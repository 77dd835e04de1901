"""What happens in Redis at once. KEYS: the lease (a string that expires), the term's number, the saved
state (a hash). A lease is "EPOCH LEADER". Redis's own time is used throughout."""

_MILLISECONDS = """
local function milliseconds()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end
"""

# ARGV: leader, lease in ms. Answers the epoch that begins, or 0 and the lease that is.
CAMPAIGN = (
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
RENEW = """
local mine = ARGV[1] .. ' ' .. ARGV[2]
local lease = redis.call('GET', KEYS[1])
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
if (lease and lease ~= mine) or last > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('SET', KEYS[1], mine, 'PX', ARGV[3])
return 1
"""

# ARGV: epoch, leader.
RESIGN = """
if redis.call('GET', KEYS[1]) == ARGV[1] .. ' ' .. ARGV[2] then redis.call('DEL', KEYS[1]) end
return 1
"""

# ARGV: epoch, leader, text.
SAVE = (
    _MILLISECONDS
    + """
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ' ' .. ARGV[2] then return 0 end
redis.call('HSET', KEYS[3], 'text', ARGV[3], 'saved_at', string.format('%.0f', milliseconds()))
return 1
"""
)

# Answers the text and its age in ms, or nothing.
LOAD = (
    _MILLISECONDS
    + """
local found = redis.call('HMGET', KEYS[3], 'text', 'saved_at')
if not found[1] then return {} end
return {found[1], string.format('%.0f', math.max(0, milliseconds() - tonumber(found[2])))}
"""
)
