-- Remove entries by name. KEYS: their bucket's index. ARGV: what all names begin with; their keys.
-- Returns how many there were.
local names, members = {}, {}
for at = 2, #ARGV do
  names[at - 1] = ARGV[1] .. ARGV[at]
  members[at - 1] = '=' .. ARGV[at]
end
redis.call('ZREM', KEYS[1], unpack(members))
return redis.call('UNLINK', unpack(names))
