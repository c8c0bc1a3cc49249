"""Two facts about values that names and bytes do not tell: what is missing, how far a counter goes."""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["COUNTER_MAX", "COUNTER_MIN", "MISSING"]

COUNTER_MIN, COUNTER_MAX = -(2**63), 2**63 - 1


class _Sentinel(enum.Enum):
    MISSING = "MISSING"

    def __repr__(self) -> str:
        return self.value


MISSING: Final = _Sentinel.MISSING
"""No value at all; None is one."""
