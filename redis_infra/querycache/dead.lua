-- Of some members of an index, taken by chance, return those whose entries are gone. ``base`` is what the names
-- of all entries begin with.
local function dead_of(index, count, base)
  local dead = {}
  for _, member in ipairs(redis.call('ZRANDMEMBER', index, count)) do
    local kind, key = string.sub(member, 1, 1), nil
    if kind == '=' then
      key = string.sub(member, 2)
    elseif kind == '#' then
      key = string.sub(member, string.find(member, '\0', 1, true) + 1)
    end
    if key and redis.call('EXISTS', base .. key) == 0 then
      dead[#dead + 1] = member
    end
  end
  return dead
end
