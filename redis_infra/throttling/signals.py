"""The Django signal for who was turned away.

Receivers get ``policy`` (its name), ``identities`` (keyed digests, one for each limit; never an address or a
name) and ``decision``. Sent in the thread of the request; one that raises is logged by Django and breaks
nothing. Not sent, and costing nothing, while nobody listens.
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = ["throttled"]

throttled = Signal()
