-- Look at a stretch of an index. KEYS: the index. ARGV: first and last (as ZRANGEBYLEX has them); how many at most.
-- Returns {members, 1 if the index is complete else 0}.
return {
  redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3]),
  redis.call('ZSCORE', KEYS[1], '!') and 1 or 0,
}
