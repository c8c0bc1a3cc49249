-- Mark indexes as complete after they were rebuilt, if none of them was lost meanwhile.
-- KEYS: indexes of buckets. ARGV: a ticket; "begin" or "end"; milliseconds for which the index has to stay.
-- Returns how many are complete now.
local complete = 0
local ticket = '?' .. ARGV[1]
for _, index in ipairs(KEYS) do
  if ARGV[2] == 'begin' then
    redis.call('ZADD', index, 0, ticket)
    if redis.call('PTTL', index) < tonumber(ARGV[3]) then
      redis.call('PEXPIRE', index, tonumber(ARGV[3]) + 3600000)
    end
  elseif redis.call('ZSCORE', index, ticket) then
    -- First the one and then the other: a set without members is gone, and its time to live with it.
    redis.call('ZADD', index, 0, '!')
    redis.call('ZREM', index, ticket)
  end
  if redis.call('ZSCORE', index, '!') then
    complete = complete + 1
  end
end
return complete
