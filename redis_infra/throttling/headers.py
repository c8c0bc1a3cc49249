"""What a response says of limits: ``RateLimit``, ``RateLimit-Policy`` and ``Retry-After``.

As draft-ietf-httpapi-ratelimit-headers-10 has them, in structured fields (RFC 9651): what is left and when
more appears of the tightest limit, and what all limits are. Knows nothing of frameworks.
"""

from __future__ import annotations

import math
from typing import Literal

from redis_infra.throttling.decisions import Decision, LimitState

__all__ = ["headers_for", "retry_after_seconds"]


def retry_after_seconds(decision: Decision) -> int | None:
    """Return what ``Retry-After`` says: whole seconds, rounded up, one at least; None if it is no use."""
    wait = decision.retry_after
    if decision.allowed or wait is None:
        return None
    return max(1, math.ceil(wait))


def headers_for(
    decision: Decision, *, shown: bool = True, style: bool | Literal["legacy"] = True
) -> dict[str, str]:
    """Return the headers of a decision, by name.

    ``shown`` is the policy's own ``headers``, ``style`` the setting ``HEADERS``: False sends none but
    ``Retry-After``, ``"legacy"`` sends ``X-RateLimit-*`` as well.
    """
    found: dict[str, str] = {}
    seconds = retry_after_seconds(decision)
    if seconds is not None:
        found["Retry-After"] = str(seconds)
    if not (shown and style and decision.numbers):
        return found
    states = decision.limits
    tightest = decision.tightest_of(states)
    found["RateLimit-Policy"] = ", ".join(
        f"{_string(state.name)};q={state.rate.limit};w={max(1, math.ceil(state.rate.window))}"
        for state in states
    )
    found["RateLimit"] = f"{_string(tightest.name)};r={tightest.remaining};t={_reset(tightest)}"
    if style == "legacy":
        found["X-RateLimit-Limit"] = str(tightest.rate.limit)
        found["X-RateLimit-Remaining"] = str(tightest.remaining)
        found["X-RateLimit-Reset"] = str(_reset(tightest))
    return found


def _reset(state: LimitState) -> int:
    # A stamp is the end of its millisecond: rounded up that could be a second more than the window.
    return min(math.ceil(state.reset_after), math.ceil(state.rate.window))


def _string(text: str) -> str:
    """Return a structured field's string: printable ASCII; nothing of a name may end the header."""
    plain = "".join(char if " " <= char <= "~" else "?" for char in text)
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
