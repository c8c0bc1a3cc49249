-- Return the stamps of tags; a tag without one gets one. KEYS: stamps. ARGV: milliseconds for which they have
-- to stay; a new stamp for each.
local found = {}
local stay = tonumber(ARGV[1])
for at, key in ipairs(KEYS) do
  local stamp = redis.call('GET', key)
  if not stamp or #stamp ~= 8 then
    stamp = ARGV[at + 1]
    redis.call('SET', key, stamp, 'PX', 2 * stay)
  elseif redis.call('PTTL', key) < stay then
    redis.call('PEXPIRE', key, 2 * stay)
  end
  found[at] = stamp
end
return found
