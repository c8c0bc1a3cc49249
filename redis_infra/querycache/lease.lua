-- Change a lease that one has: prolong it, or let go of it.
-- KEYS: the entry. ARGV: token; milliseconds of the lease from now on (0: nobody is kept from it any more);
--       milliseconds for which the entry has to stay at least; "1" to remove an entry without a value.
-- Returns 1 if one still had it, else 0.
local entry = KEYS[1]
local head = redis.call('GETRANGE', entry, 0, 31)
if #head < 32 or string.sub(head, 12, 19) ~= ARGV[1] then
  return 0
end
if ARGV[4] == '1' and string.sub(head, 4, 11) == '\0\0\0\0\0\0\0\0' then
  redis.call('UNLINK', entry)
  return 1
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SETRANGE', entry, 19, string.format('%013d', now + tonumber(ARGV[2])))
local left, stay = redis.call('PTTL', entry), tonumber(ARGV[3])
if left >= 0 and left < stay then
  redis.call('PEXPIRE', entry, stay)
end
return 1
