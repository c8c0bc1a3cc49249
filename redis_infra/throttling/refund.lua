-- Take back what was charged, in every log, wherever it still is.
-- KEYS[i]  logs, as in hit.lua
-- ARGV     cost, server's time in ms of the charge (0: unknown), then for each key: window in ms, grain in ms
-- Reply    {server's time in ms, then for each key: what still counts}
-- What is not found at its stamp is taken from the oldest entries: what stays must count at least as long as
-- what it stands for.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local charged = tonumber(ARGV[2])
local reply = {now}
for i = 1, #KEYS do
  local cost, window, grain = tonumber(ARGV[1]), tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  local stamp = grain > 0 and (math.floor(charged / grain) + 1) * grain or charged - charged % window
  local log = redis.call('GET', KEYS[i]) or ''
  local stamps, counts, total = {}, {}, 0
  for at = 11, #log, 20 do
    local entry, count = tonumber(string.sub(log, at, at + 12)), tonumber(string.sub(log, at + 13, at + 19))
    if entry > now - window then
      if entry == stamp then
        local taken = math.min(cost, count)
        cost, count = cost - taken, count - taken
      end
      stamps[#stamps + 1], counts[#counts + 1], total = entry, count, total + count
    end
  end
  local rest, last = {}, 0
  for j = 1, #stamps do
    local taken = math.min(cost, counts[j])
    cost, counts[j], total = cost - taken, counts[j] - taken, total - taken
    if counts[j] > 0 then
      last = stamps[j]
      rest[#rest + 1] = string.format('%013.0f%07d', last, counts[j])
    end
  end
  if #rest > 0 then
    redis.call('SET', KEYS[i], string.format('%010d', total) .. table.concat(rest), 'PX', string.format('%.0f', last - now + window))
  elseif log ~= '' then
    redis.call('DEL', KEYS[i])
  end
  reply[i + 1] = total
end
return reply
