"""A program that runs beside this process and ends with it, however this one ends.

Started, frozen, thawed, killed; what it writes can be read. Knows nothing of
Redis. POSIX only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import weakref
from typing import Final

__all__ = ["ChildProcess"]

# Waits at a pipe that nobody else holds. The first line says that the child has ended, the second that its
# directory was seen to; end of file says that its starter is gone, however that came about. Unlike
# PR_SET_PDEATHSIG this exists on macOS, and it does not kill the child when no more than the *thread* that
# started it ends.
REAPER: Final = 'read -r line || kill -9 "$1"; read -r line || [ -z "$2" ] || rm -rf -- "$2"'

_started: weakref.WeakSet[ChildProcess] = weakref.WeakSet()


class ChildProcess:
    """Start ``command`` in the directory ``cwd`` and hand it ``stdin``, which is then closed.

    If this process ends without having called :meth:`release`, the child is killed
    and the directory ``remove``, if given, deleted by a small shell that waits for
    that; where there is no ``sh``, nobody does. In a forked child of this process
    the object can signal, and its end has no consequence.

    Raises:
        OSError: the program cannot be executed.
    """

    def __init__(self, command: list[str], *, stdin: bytes, cwd: str, remove: str = "") -> None:
        self._owner = os.getpid()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open until release()
        try:
            # A session of its own: Ctrl-C in the terminal is for us to act upon, not for the child.
            self._process = subprocess.Popen(  # noqa: S603 - the command is the caller's, not a visitor's
                command,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                start_new_session=True,
            )
        except BaseException:
            self._log.close()
            raise
        self._reaper = _reaper(self._process.pid, remove)
        _started.add(self)
        _watch_forks()
        self._write(stdin)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_ours(self) -> bool:
        """Whether this very process started it, and not one that this one was forked from."""
        return os.getpid() == self._owner

    @property
    def running(self) -> bool:
        """Whether it has not ended. The system tells that only to its starter (see :attr:`is_ours`)."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has written so far; empty after :meth:`release`."""
        if self._log.closed:
            return ""
        # pread leaves the offset alone, which is the one that the child writes at.
        descriptor = self._log.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def kill(self) -> None:
        """End it at once (SIGKILL), frozen or not; return when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait()
        self._tell_reaper(b"\n")

    def terminate(self, timeout: float) -> None:
        """Ask it to end (SIGTERM), and return when it has, or after ``timeout`` seconds."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def freeze(self) -> None:
        """Stop it where it is (SIGSTOP); return when it does nothing any more."""
        os.kill(self.pid, signal.SIGSTOP)
        # The signal may take effect a little later than it is sent. WNOWAIT leaves the news for those who
        # ask next: Popen, and a second freeze.
        if self.is_ours and hasattr(os, "waitid"):
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def release(self) -> None:
        """After its end: let go of the log and of the shell that waited for ours."""
        self._tell_reaper(b"\n\n")
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()
            self._reaper.wait()
        self._log.close()

    def _write(self, stdin: bytes) -> None:
        pipe = self._process.stdin
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError), pipe:  # it has ended already; its log says why
                pipe.write(stdin)

    def _tell_reaper(self, lines: bytes) -> None:
        if self._reaper is not None and self._reaper.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # it was killed, or a fork closed the pipe
                self._reaper.stdin.write(lines)

    def _leave_to_parent(self) -> None:
        """In a forked child: the pipe must end with the parent, not with the last of its children."""
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()


def _reaper(pid: int, remove: str) -> subprocess.Popen[bytes] | None:
    shell = shutil.which("sh", path=os.defpath)
    if shell is None:
        return None
    return subprocess.Popen(  # noqa: S603 - our own script; pid and path are arguments, not part of it
        [shell, "-c", REAPER, "sh", str(pid), remove],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd="/",
        start_new_session=True,
    )


@functools.cache
def _watch_forks() -> None:
    def in_child() -> None:
        for child in list(_started):
            child._leave_to_parent()

    os.register_at_fork(after_in_child=in_child)
