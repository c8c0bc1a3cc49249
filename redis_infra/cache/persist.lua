-- Let a key live for ever.
-- KEYS[1] key
-- Reply: 1 if the key is there, whether or not it had a time to live; 0 if it is not
redis.call('PERSIST', KEYS[1])
return redis.call('EXISTS', KEYS[1])
