-- Remove members whose entries are gone from indexes that perhaps nobody writes to any more.
-- KEYS: the indexes of all buckets. ARGV: what the names of all entries begin with; at how many indexes to
--       look; from which on.
-- Returns how many were removed.
--
-- acquire.lua looks after the bucket that it writes to. Where the bucket changes with the day, or with the
-- customer, the ones of before would keep their members until their time to live is over.
local left, start, removed = tonumber(ARGV[2]), tonumber(ARGV[3]), 0
for step = 0, #KEYS - 1 do
  local index = KEYS[(start + step) % #KEYS + 1]
  -- One member is the mark of a complete index.
  if redis.call('ZCARD', index) > 1 then
    -- Where none of eight is dead, few are: seldom more than a fifth of all.
    for _ = 1, 20 do
      local dead = dead_of(index, 8, ARGV[1])
      if #dead == 0 then
        break
      end
      removed = removed + redis.call('ZREM', index, unpack(dead))
    end
    left = left - 1
    if left == 0 then
      break
    end
  end
end
return removed
