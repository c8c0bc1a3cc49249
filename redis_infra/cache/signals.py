"""Django signals for the two moments that matter: Redis is lost, Redis is back.

Sent once each per outage and process, in the thread that met the change (the
prober's, usually, for the way back). Receivers get ``server`` (an address
without user or password), ``circuit`` (``reach``, ``access`` or ``writes``) and
``cause``; :data:`redis_recovered` also ``lasted`` (seconds), ``served_locally``
and ``drained`` (counts). A receiver that raises is logged and breaks nothing.
"""

from __future__ import annotations

from django.dispatch import Signal

from redis_infra.instrumentation import Transition, subscribe

__all__ = ["redis_recovered", "redis_unavailable"]

redis_unavailable = Signal()
redis_recovered = Signal()


def connect() -> None:
    """Send the signals from now on. Called with the first cache that is used."""
    subscribe(_send)


def _send(change: Transition) -> None:
    facts = {"server": change.server, "circuit": change.circuit, "cause": change.cause}
    if change.before == "closed":
        redis_unavailable.send_robust(sender=None, **facts)
    elif change.after == "closed":
        redis_recovered.send_robust(
            sender=None,
            lasted=change.lasted,
            served_locally=change.served_locally,
            drained=change.drained,
            **facts,
        )
