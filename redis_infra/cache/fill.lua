-- Store a value where there is none, and end the lease under which it was computed.
-- KEYS: the value; its lease. ARGV: token; the value; milliseconds it lives, 0 for ever.
-- Returns false if it was stored, else what was there already.
local there = redis.call('GET', KEYS[1])
if not there then
  if ARGV[3] == '0' then
    redis.call('SET', KEYS[1], ARGV[2])
  else
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  end
end
if redis.call('GET', KEYS[2]) == ARGV[1] then
  redis.call('DEL', KEYS[2])
end
return there
