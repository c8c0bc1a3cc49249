-- Store what was computed under a lease, if the lease still stands.
-- KEYS: the entry, its bucket's index.
-- ARGV: token; the new entry; milliseconds it lives; milliseconds for which the index has to stay; members of
--       the index.
-- Returns 1 if it was stored, 0 if the entry was invalidated, or the lease taken over, in the meantime.
local entry, index = KEYS[1], KEYS[2]
if redis.call('GETRANGE', entry, 11, 18) ~= ARGV[1] then
  return 0
end
redis.call('SET', entry, ARGV[2], 'PX', ARGV[3])
for at = 5, #ARGV do
  redis.call('ZADD', index, 0, ARGV[at])
end
local stay = tonumber(ARGV[4])
if redis.call('PTTL', index) < stay then
  redis.call('PEXPIRE', index, stay + 3600000)
end
return 1
