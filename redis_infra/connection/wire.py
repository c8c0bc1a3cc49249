"""Commands as the server reads them. The one use of hiredis that needs no redis-py (0.4 ms to import)."""

from __future__ import annotations

import hiredis

__all__ = ["pack"]


def pack(*args: str | bytes | int | float) -> bytes:
    """One command, packed: ``pack("GET", "k")``."""
    packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]  # its stub says a tuple of one
    return packed
