"""The names of what Relay keeps by hand, with Django's cache API, and for how long.

That is counters, and the notice board, which the playground writes and deletes itself. Everything else is
the query cache's, whose functions name their own keys (``queries``). Times are seconds.
"""

from __future__ import annotations

COUNTER = 24 * 3600

BOARD = "board"
BOARD_TIME = 60


def views(what: str, name: str | int) -> str:
    """Name the counter of how often a page was seen."""
    return f"views:{what}:{name}"
