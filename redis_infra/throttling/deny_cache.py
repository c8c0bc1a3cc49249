"""What a process remembers of denials, so that who is denied costs Redis nothing.

Exact: nothing can appear in a sliding log before the moment that the denial named. Kept for two seconds at
most all the same, since limits can be raised and logs forgotten elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Final

__all__ = ["DenyCache"]

LONGEST: Final = 2000
"""Milliseconds."""
MOST: Final = 10_000


class DenyCache:
    """Replies that said no, until they might say yes. Thread-safe: each step is one of a dictionary's own."""

    def __init__(self, now_ms: Callable[[], int], *, most: int = MOST) -> None:
        self._now = now_ms
        self._most = most
        self.replies: dict[Hashable, tuple[int, int, Sequence[int]]] = {}
        """By plan, tags and cost; empty while nobody is denied, which costs a look and no call."""

    def get(self, key: Hashable) -> list[int] | None:
        """Return the reply that was remembered, with what has passed of its waits taken off; or None."""
        found = self.replies.get(key)
        if found is None:
            return None
        at, until, reply = found
        now = self._now()
        if now >= until:
            self.replies.pop(key, None)
            return None
        passed = now - at
        aged = list(reply)
        for index in range(2, len(aged), 3):
            aged[index + 1] = max(aged[index + 1] - passed, 0)
            aged[index + 2] = max(aged[index + 2] - passed, 1) if aged[index + 2] > 0 else aged[index + 2]
        return aged

    def put(self, key: Hashable, reply: Sequence[int]) -> None:
        """Remember a denial."""
        now = self._now()
        wait = max(reply[4::3])
        if len(self.replies) >= self._most:
            self._make_room(now)
        self.replies[key] = (now, now + (min(wait, LONGEST) if -1 not in reply[4::3] else LONGEST), reply)

    def _make_room(self, now: int) -> None:
        for key, (_, until, _) in list(self.replies.items()):
            if until <= now:
                self.replies.pop(key, None)
        while len(self.replies) >= self._most:  # a denial forgotten is a command more, and no request more
            self.replies.pop(next(iter(self.replies)), None)

    def clear(self) -> None:
        self.replies.clear()

    def __len__(self) -> int:
        return len(self.replies)
