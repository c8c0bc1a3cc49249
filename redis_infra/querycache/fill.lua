-- Store what was computed under a lease, if the lease still stands; and tidy the index a little.
-- KEYS: the entry, its bucket's index.
-- ARGV: token; the new entry; milliseconds it lives; milliseconds for which the index has to stay; what the
--       names of all entries begin with; members of the index.
-- Returns 1 if it was stored, 0 if the entry was invalidated, or the lease taken over, in the meantime.
local entry, index = KEYS[1], KEYS[2]
if redis.call('GETRANGE', entry, 11, 18) ~= ARGV[1] then
  return 0
end
redis.call('SET', entry, ARGV[2], 'PX', ARGV[3])
local base = ARGV[5]
for at = 6, #ARGV do
  redis.call('ZADD', index, 0, ARGV[at])
end
local stay = tonumber(ARGV[4])
if redis.call('PTTL', index) < stay then
  redis.call('PEXPIRE', index, stay + 3600000)
end
-- Each write looks at a few members, and removes those whose entries are gone. In the steady state as many
-- go as come when one in so many is dead: with four looks a quarter of the live ones at most, whatever it
-- was that removed the entries (expiry, eviction, somebody's UNLINK). Where more are found, it looks again.
for _ = 1, 4 do
  local dead = {}
  for _, member in ipairs(redis.call('ZRANDMEMBER', index, 4)) do
    local kind, key = string.sub(member, 1, 1), nil
    if kind == '=' then
      key = string.sub(member, 2)
    elseif kind == '#' then
      key = string.sub(member, string.find(member, '\0', 1, true) + 1)
    end
    if key and redis.call('EXISTS', base .. key) == 0 then
      dead[#dead + 1] = member
    end
  end
  if #dead > 0 then
    redis.call('ZREM', index, unpack(dead))
  end
  if #dead < 2 then
    break
  end
end
return 1
