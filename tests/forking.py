"""Do something in a forked child, and get its answer or its error."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable
from typing import TypeVar

__all__ = ["in_child"]

T = TypeVar("T")

PATIENCE = 30
"""Seconds after which a child that hangs is ended."""


def in_child(action: Callable[[], T]) -> T:
    """Fork, return what ``action`` returns in the child, and raise here what it raises there.

    The child inherits what is open and no thread, as a worker does of a server that loads the site first.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # That this process has threads (a proxy's, a prober's) is what makes these forks worth a test.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest-timeout has its own
        signal.alarm(PATIENCE)
        _answer(action, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert data, f"the child ended without an answer, status {status}"
    value, error = pickle.loads(data)
    if error:
        raise AssertionError(f"in the child:\n{error}")
    return value


def _answer(action: Callable[[], object], writer: int) -> None:
    data = b""
    try:
        data = pickle.dumps((action(), ""))
    except BaseException:
        data = pickle.dumps((None, traceback.format_exc()))
    finally:
        with contextlib.suppress(OSError), os.fdopen(writer, "wb") as pipe:
            pipe.write(data)
        os._exit(0)
