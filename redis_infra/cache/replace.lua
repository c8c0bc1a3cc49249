-- Replace a value if nobody has changed it meanwhile; it keeps its time to live.
-- KEYS[1] key   ARGV[1] the value as it was read   ARGV[2] the new value
-- Reply: 1 replaced, 0 it is another one by now
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1
