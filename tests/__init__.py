"""The test suite of redis_infra."""
