-- Begin to rebuild lost indexes, if nobody else does.
-- KEYS: the lease of who rebuilds, the indexes of all buckets.
-- ARGV: a ticket; milliseconds of the lease; milliseconds for which an index has to stay.
-- Returns the numbers of the buckets that are lost, from 0; none if somebody else rebuilds.
local ticket, lease, stay = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lost = {}
if redis.call('GET', KEYS[1]) then
  return lost
end
for at = 2, #KEYS do
  local index = KEYS[at]
  if not redis.call('ZSCORE', index, '!') then
    lost[#lost + 1] = at - 2
    -- Those of who has died, or was taken over from, and then has nothing to mark any more.
    redis.call('ZREMRANGEBYLEX', index, '[?', '(@')
    redis.call('ZADD', index, 0, '?' .. ticket)
    if redis.call('PTTL', index) < stay then
      redis.call('PEXPIRE', index, stay + 3600000)
    end
  end
end
if #lost > 0 then
  redis.call('SET', KEYS[1], ticket, 'PX', lease)
end
return lost
