"""Digests: short names for long texts."""

from __future__ import annotations

import hashlib

__all__ = ["digest"]


def digest(text: str, size: int = 8) -> str:
    """Return ``2 * size`` hexadecimal digits that stand for ``text``: the same everywhere and for ever.

    Names and compares; does not protect. Takes any text, lone surrogates too. ``size`` is 1 to 64 bytes.
    """
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()
