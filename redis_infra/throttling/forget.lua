-- Forget what was charged: everybody begins anew.
-- KEYS[i]  logs
-- Reply    {server's time in ms, how many logs there were}
local time = redis.call('TIME')
return {time[1] * 1000 + math.floor(time[2] / 1000), redis.call('DEL', unpack(KEYS))}
