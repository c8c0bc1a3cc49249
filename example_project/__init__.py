"""Relay: a small team chat and documents site that shows redis_infra at work."""
