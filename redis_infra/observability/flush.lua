-- Adds what one process has counted to the sums of all, once however often it is sent.
-- KEYS[1] number of the process' last flush   KEYS[2] list of what happened   KEYS[3] minute   KEYS[4] hour
-- ARGV[1] number of this flush   [2] life of KEYS[1] in s   [3], [4] lives of minute and hour in s
-- ARGV[5] most rows of a bucket  [6] most entries of the list  [7] how many entries follow, and then
--   for each row: its name, the name of the row for what there is no room for, its numbers
-- Reply: 1, or 0 if this flush had been counted already. "1 0 7" and "0 2" make "1 2 7".
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then
  return 0
end

local function sum(one, other)
  local numbers, at = {}, 0
  for number in string.gmatch(one, '%d+') do
    numbers[#numbers + 1] = tonumber(number)
  end
  for number in string.gmatch(other, '%d+') do
    at = at + 1
    numbers[at] = (numbers[at] or 0) + tonumber(number)
  end
  for index, number in ipairs(numbers) do
    numbers[index] = string.format('%.0f', number)
  end
  return table.concat(numbers, ' ')
end

local events = tonumber(ARGV[7])
for at = 8, 7 + events do
  redis.call('LPUSH', KEYS[2], ARGV[at])
end
if events > 0 then
  redis.call('LTRIM', KEYS[2], 0, ARGV[6] - 1)
  redis.call('EXPIRE', KEYS[2], ARGV[4])
end

for bucket = 3, 4 do
  local rows = redis.call('HLEN', KEYS[bucket])
  for at = 8 + events, #ARGV, 3 do
    local name = ARGV[at]
    local known = redis.call('HGET', KEYS[bucket], name)
    if not known and rows >= tonumber(ARGV[5]) then
      name = ARGV[at + 1]
      known = redis.call('HGET', KEYS[bucket], name)
    end
    if not known then
      rows = rows + 1
    end
    redis.call('HSET', KEYS[bucket], name, sum(known or '', ARGV[at + 2]))
  end
  redis.call('EXPIRE', KEYS[bucket], ARGV[bucket])
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
