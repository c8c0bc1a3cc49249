-- Add to a counter that exists; never create one.
-- KEYS[1] counter   ARGV[1] delta (integer)
-- Reply: the new value (as text where a Lua number could not hold it exactly); false (nil) when the key is
--        missing; an error when it holds no integer or would overflow
if redis.call('EXISTS', KEYS[1]) == 0 then
  return false
end
local value = redis.call('INCRBY', KEYS[1], ARGV[1])
if value < 9007199254740992 and value > -9007199254740992 then
  return value
end
return redis.call('GET', KEYS[1])
