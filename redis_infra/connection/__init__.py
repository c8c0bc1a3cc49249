"""The only package that opens connections to Redis: where a server is, pools, recovery.

This module imports nothing: redis-py is loaded when the first connection is wanted, not before.
Import from the module that has the name, e.g. ``redis_infra.connection.options``.
"""
