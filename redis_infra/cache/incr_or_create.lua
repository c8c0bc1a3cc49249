-- Add to a counter; create it with a time to live if it is missing. An existing one keeps its own.
-- KEYS[1] counter   ARGV[1] delta (integer)   ARGV[2] time to live in ms; 0: for ever; below 0: do not keep it
-- Reply: the new value (as text where a Lua number could not hold it exactly); an error when the key holds no
--        integer or would overflow
local existed = redis.call('EXISTS', KEYS[1])
local value = redis.call('INCRBY', KEYS[1], ARGV[1])
if value >= 9007199254740992 or value <= -9007199254740992 then
  value = redis.call('GET', KEYS[1])
end
if existed == 0 and ARGV[2] ~= '0' then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return value
