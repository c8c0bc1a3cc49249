-- Write members down in indexes that are being rebuilt, and prolong the lease.
-- KEYS: the lease, indexes. ARGV: the ticket; milliseconds of the lease; for each index how many members, and
--       these.
-- Returns 1, or 0 if somebody else rebuilds by now.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local from = 3
for at = 2, #KEYS do
  local last = from + tonumber(ARGV[from])
  -- One that was lost meanwhile is not begun anew: it would have no time to live, and not be trusted.
  if redis.call('ZSCORE', KEYS[at], '?' .. ARGV[1]) then
    local members = {}
    for place = from + 1, last do
      members[#members + 1] = 0
      members[#members + 1] = ARGV[place]
    end
    redis.call('ZADD', KEYS[at], unpack(members))
  end
  from = last + 1
end
return 1
