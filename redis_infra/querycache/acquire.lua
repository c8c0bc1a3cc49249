-- Ask for the lease of an entry: who has it computes, everybody else waits or takes what is there.
-- KEYS: the entry, its bucket's index.
-- ARGV: token; milliseconds of the lease; who filled the entry that was found of no use ("" if none);
--       milliseconds for which the index has to stay; the bytes of a placeholder; what the names of all
--       entries begin with; members of the index.
-- Returns {"granted", token}, {"held", milliseconds left}, or {"filled", the entry as it is now}.
--
-- The token that is granted is the one that lies there, if there is one: of a holder that died, or that has
-- computed and stores at its commit. It says that nothing was invalidated since it was made, and that holds
-- for whoever computes from now on as well. Who stores first ends it.
--
-- The lease is part of the entry. Whatever removes the entry, be it UNLINK, a pattern, a drained journal or
-- an eviction, ends the lease with it, and what was computed under it is not stored any more.
local entry, index = KEYS[1], KEYS[2]
local token, lease, seen = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local head = redis.call('GETRANGE', entry, 0, 31)
local ends = string.format('%013d', now + lease)
if #head == 32 and string.sub(head, 1, 3) == string.sub(ARGV[5], 1, 3) then
  local filled = string.sub(head, 4, 11)
  if filled ~= seen and filled ~= '\0\0\0\0\0\0\0\0' then
    return {'filled', redis.call('GET', entry)}
  end
  local held = tonumber(string.sub(head, 20, 32)) - now
  if held > 0 then
    return {'held', held}
  end
  local before = string.sub(head, 12, 19)
  token = before ~= '\0\0\0\0\0\0\0\0' and before or token
  redis.call('SETRANGE', entry, 11, token .. ends)
  local left = redis.call('PTTL', entry)
  if left >= 0 and left < lease + 1000 then
    redis.call('PEXPIRE', entry, lease + 1000)
  end
else
  -- A second longer than the lease: who is late and was not taken over may still store.
  local placeholder = string.sub(ARGV[5], 1, 11) .. token .. ends .. string.sub(ARGV[5], 33)
  redis.call('SET', entry, placeholder, 'PX', lease + 1000)
end
for at = 7, #ARGV do
  redis.call('ZADD', index, 0, ARGV[at])
end
local stay = tonumber(ARGV[4])
if redis.call('PTTL', index) < stay then
  redis.call('PEXPIRE', index, stay + 3600000)
end
-- Here and not where values are stored, as much is asked for that never is. Each lease looks at a few
-- members, and removes those whose entries are gone. In the steady state as many go as come when one in so
-- many is dead: with four looks a quarter of the live ones at most, whatever it was that removed the entries
-- (expiry, eviction, somebody's UNLINK). Where more are found, it looks again.
for _ = 1, 4 do
  local dead = dead_of(index, 4, ARGV[6])
  if #dead > 0 then
    redis.call('ZREM', index, unpack(dead))
  end
  if #dead < 2 then
    break
  end
end
return {'granted', token}
