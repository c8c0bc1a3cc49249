-- Mark indexes as complete after all keys were looked at, if they were not lost meanwhile; let go of the lease.
-- KEYS: the lease, the indexes that were rebuilt. ARGV: the ticket.
-- Returns how many are complete now.
local complete = 0
local ticket = '?' .. ARGV[1]
for at = 2, #KEYS do
  local index = KEYS[at]
  if redis.call('ZSCORE', index, ticket) then
    -- First the one and then the other: a set without members is gone, and its time to live with it.
    redis.call('ZADD', index, 0, '!')
    redis.call('ZREM', index, ticket)
  end
  if redis.call('ZSCORE', index, '!') then
    complete = complete + 1
  end
end
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return complete
