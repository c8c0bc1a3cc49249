-- Change the lease of a key that one has. KEYS: the lease. ARGV: token; milliseconds from now on, 0 to end it.
-- Returns 1 if one still had it, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  return redis.call('DEL', KEYS[1])
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
