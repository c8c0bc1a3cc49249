-- Remove the entries that lie in one stretch of the index, a thousand at most.
-- KEYS: indexes of buckets. ARGV: what the names of all entries begin with; first and last of the stretch
--       (as ZRANGEBYLEX has them); at most how many.
-- Returns {how many were removed, whether there is more, how many indexes are incomplete}.
local base, first, last, left = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local removed, more, incomplete = 0, 0, 0
local sub, find, tagged = string.sub, string.find, string.sub(first, 2, 2) == '#'
for _, index in ipairs(KEYS) do
  if not redis.call('ZSCORE', index, '!') then
    incomplete = incomplete + 1
  end
  local members = {}
  if left > 0 then
    -- One more than is taken, which tells whether there is more.
    members = redis.call('ZRANGEBYLEX', index, first, last, 'LIMIT', 0, left + 1)
    if #members > left then
      more = 1
      members[#members] = nil
    end
  elseif redis.call('ZLEXCOUNT', index, first, last) > 0 then
    more = 1
  end
  if #members > 0 then
    local names, others = {}, {}
    for at, member in ipairs(members) do
      local key = sub(member, tagged and find(member, '\0', 1, true) + 1 or 2)
      names[at] = base .. key
      if tagged then
        others[at] = '=' .. key
      end
    end
    removed = removed + redis.call('UNLINK', unpack(names))
    if tagged then
      redis.call('ZREM', index, unpack(others))
    end
    -- One walk instead of a search for each: they lie side by side.
    redis.call('ZREMRANGEBYLEX', index, '[' .. members[1], '[' .. members[#members])
    left = left - #members
  end
end
return {removed, more, incomplete}
