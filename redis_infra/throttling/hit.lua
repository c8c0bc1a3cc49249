-- Strict sliding-window logs, run-length encoded: at most `limit` in ANY window. N limits, all or nothing.
-- KEYS[i]  one log per limit; all in one hash slot
-- ARGV     cost (0: only look), then for each key: limit, window in ms, grain in ms (0: window of the calendar, UTC)
-- Reply    {allowed 0|1, server's time in ms, then for each key: remaining, ms until more quota appears (0: all is
--           there), ms until this cost fits (0: it does, -1: never)}
-- Value    %010d total, then oldest first %013d stamp in ms (END of its grain) and %07d count.
-- Without struct and cmsgpack, which not every server of this protocol has. Sibling: sliding_log.py.
local cost = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply, kept, used = {1, now}, {}, {}
for i = 1, #KEYS do
  local limit, window = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local log = redis.call('GET', KEYS[i]) or ''
  local length, at, total, cut = #log, 11, tonumber(string.sub(log, 1, 10)) or 0, now - window
  while at < length and tonumber(string.sub(log, at, at + 12)) <= cut do
    total = total - tonumber(string.sub(log, at + 13, at + 19))
    at = at + 20
  end
  local reset = at < length and tonumber(string.sub(log, at, at + 12)) - cut or 0
  local retry = 0
  if total + cost > limit then
    reply[1] = 0
    if cost > limit then
      retry = -1
    else
      local needed, entry = total + cost - limit, at - 20
      repeat
        entry = entry + 20
        needed = needed - tonumber(string.sub(log, entry + 13, entry + 19))
      until needed <= 0
      retry = tonumber(string.sub(log, entry, entry + 12)) - cut
    end
  end
  kept[i], used[i] = string.sub(log, at), total
  reply[3 * i], reply[3 * i + 1], reply[3 * i + 2] = math.max(0, limit - total), reset, retry
end
if reply[1] == 1 and cost > 0 then
  for i = 1, #KEYS do
    local window, grain, log, count = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), kept[i], cost
    local stamp = grain > 0 and (math.floor(now / grain) + 1) * grain or now - now % window
    if log ~= '' then
      local last = tonumber(string.sub(log, -20, -8))
      if last >= stamp then -- the same grain, or the clock stepped back: keep the log ordered
        stamp, count, log = last, cost + tonumber(string.sub(log, -7)), string.sub(log, 1, -21)
      end
    end
    redis.call('SET', KEYS[i], string.format('%010d', used[i] + cost) .. log .. string.format('%013.0f%07d', stamp, count),
               'PX', string.format('%.0f', stamp - now + window))
    reply[3 * i] = reply[3 * i] - cost
    if reply[3 * i + 1] == 0 then reply[3 * i + 1] = stamp - now + window end
  end
end
return reply
