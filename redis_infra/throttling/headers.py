"""What a response says of limits: ``RateLimit``, ``RateLimit-Policy`` and ``Retry-After``.

As draft-ietf-httpapi-ratelimit-headers-10 has them, in structured fields (RFC 9651): what is left and when
more appears of the tightest limit, and what all limits are. Knows nothing of frameworks.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

from redis_infra.throttling.decisions import Decision

__all__ = ["headers_for", "retry_after_seconds"]


def retry_after_seconds(decision: Decision) -> int | None:
    """Return what ``Retry-After`` says: whole seconds, rounded up, one at least; None if it is no use."""
    if decision.allowed:
        return None
    wait, tightest = decision.retry_after, decision.tightest
    if wait is None:
        return None
    # A stamp is the end of its millisecond, so that the wait may be one more than the window. The response
    # takes that long, and rounded up it would be a second.
    if tightest is not None and wait == tightest.rate.window + 0.001:
        wait = tightest.rate.window
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
    numbers = decision.numbers
    if not (shown and style and numbers):
        return found
    policies, names, limits, windows = _fixed_part(decision.terms)
    at = decision.tightest_at
    remaining = numbers[3 * at]
    # A stamp is the end of its millisecond: rounded up that could be a second more than the window.
    reset = min(-(-numbers[3 * at + 1] // 1000), windows[at])
    found["RateLimit-Policy"] = policies
    found["RateLimit"] = f"{names[at]};r={remaining};t={reset}"
    if style == "legacy":
        found["X-RateLimit-Limit"] = str(limits[at])
        found["X-RateLimit-Remaining"] = str(remaining)
        found["X-RateLimit-Reset"] = str(reset)
    return found


@lru_cache(maxsize=1024)
def _fixed_part(terms: Any) -> tuple[str, tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Return what every response about these limits says: the policies, and name and size of each."""
    names = tuple(_string(name) for name, _ in terms.named_rates)
    rates = [rate for _, rate in terms.named_rates]
    windows = tuple(math.ceil(rate.window) for rate in rates)
    policies = [
        f"{name};q={rate.limit};w={window}" for name, rate, window in zip(names, rates, windows, strict=True)
    ]
    return ", ".join(policies), names, tuple(rate.limit for rate in rates), windows


def _string(text: str) -> str:
    """Return a structured field's string: printable ASCII; nothing of a name may end the header."""
    plain = "".join(char if " " <= char <= "~" else "?" for char in text)
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
