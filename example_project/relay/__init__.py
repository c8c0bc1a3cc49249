"""Relay's one app: rooms, messages and documents, all read through the cache."""
