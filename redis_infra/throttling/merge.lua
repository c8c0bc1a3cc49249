-- Add to one log what was let through without Redis, and what Redis has forgotten.
-- KEYS[1]  log, as in hit.lua     KEYS[2]  mark that says that this was added
-- ARGV     1 window in ms   2 grain in ms
--          3 what Redis once said to count, 4 when it said so (its own time in ms; 0: nothing is known): what of
--            that is missing was lost with a restart or an eviction, and is put back
--          then pairs: age in ms, count of what was let through without Redis, oldest first
-- Reply    {server's time in ms, what counts now}
-- Sent again, after a reply that was lost, it adds nothing: the mark lives as long as the window.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local window, grain, known, known_at = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local log = redis.call('GET', KEYS[1]) or ''
local function stamp_of(at)
  return grain > 0 and (math.floor(at / grain) + 1) * grain or at - at % window
end
if log == '' and known_at == 0 and #ARGV == 6 then -- most of them, after an outage in which many came
  local stamp, count = stamp_of(now - tonumber(ARGV[5])), math.min(tonumber(ARGV[6]), 9999999)
  if stamp <= now - window or not redis.call('SET', KEYS[2], '1', 'NX', 'PX', window + math.max(grain, 1)) then
    return {now, 0}
  end
  redis.call('SET', KEYS[1], string.format('%010d%013.0f%07d', count, stamp, count),
             'PX', string.format('%.0f', stamp - now + window))
  return {now, count}
end
local counts, before = {}, 0
for at = 11, #log, 20 do
  local stamp, count = tonumber(string.sub(log, at, at + 12)), tonumber(string.sub(log, at + 13, at + 19))
  if stamp > now - window then
    counts[stamp] = (counts[stamp] or 0) + count
    if stamp <= known_at + 1 then before = before + count end
  end
end
local function add(stamp, count)
  if count > 0 and stamp > now - window then counts[stamp] = (counts[stamp] or 0) + count end
end
known_at = math.min(known_at, now) -- another server's clock may be behind
if known_at > 0 and before < known then
  -- All entries of a window by the calendar have one stamp: those of now cannot be told from those of then.
  if grain > 0 then add(known_at + 1, known - before) else add(stamp_of(known_at), known) end
end
if #ARGV > 4 and redis.call('SET', KEYS[2], '1', 'NX', 'PX', window + math.max(grain, 1)) then
  for i = 5, #ARGV, 2 do add(stamp_of(now - tonumber(ARGV[i])), tonumber(ARGV[i + 1])) end
end
local stamps, total = {}, 0
for stamp in pairs(counts) do stamps[#stamps + 1] = stamp end
table.sort(stamps)
local entries = {}
for i = 1, #stamps do
  total = total + counts[stamps[i]]
  entries[i] = string.format('%013.0f%07d', stamps[i], math.min(counts[stamps[i]], 9999999))
end
if total > 0 then
  redis.call('SET', KEYS[1], string.format('%010d', total) .. table.concat(entries),
             'PX', string.format('%.0f', stamps[#stamps] - now + window))
end
return {now, total}
