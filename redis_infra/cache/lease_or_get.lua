-- Get a value, or the lease to compute it. KEYS: the value; its lease. ARGV: token; milliseconds of the lease.
-- Returns {"filled", the value}, {"granted"}, or {"held"} if somebody else computes.
local value = redis.call('GET', KEYS[1])
if value then
  return {'filled', value}
end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return {'granted'}
end
return {'held'}
