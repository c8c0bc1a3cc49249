-- Move a value to another key, with its time to live.
-- KEYS[1] old   KEYS[2] new (both in one slot)
-- Reply: 1 moved, 0 there was nothing to move
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('RENAME', KEYS[1], KEYS[2])
return 1
