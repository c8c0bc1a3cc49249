"""What keeps a site up while a server is down: circuits, failover, journals, the host's directory.

Knows nothing of Redis, Django, sockets or settings: it is handed its limits, its clock and two callables,
and tells observers what happened.
"""
