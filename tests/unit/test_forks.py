"""Files that are closed for the time of a fork: whatever comes in between, the next fork is possible."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from redis_infra.resilience import forks
from tests.forking import in_child


class File:
    """A file with one lock; does ``then`` when it was closed."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.lock = threading.Lock()
        self.then = then
        self.closed = 0
        forks.close_before_forks(self)

    def before_fork(self, deadline: float, taken: list[threading.Lock]) -> None:
        assert self.lock.acquire(timeout=1)
        taken.append(self.lock)
        self.closed += 1
        self.then()

    def after_fork(self) -> None:
        self.lock = threading.Lock()


def test_a_file_is_closed_before_a_fork_and_free_on_both_sides_after_it() -> None:
    file = File()
    assert in_child(lambda: (file.closed, file.lock.locked())) == (1, False)
    assert (file.closed, file.lock.locked()) == (1, False)


def test_what_a_signal_handler_raises_in_between_blocks_no_later_fork() -> None:
    """Python prints it, and forks all the same."""

    def interrupt() -> None:
        raise InterruptedError

    file = File(interrupt)
    with pytest.raises(InterruptedError):
        forks._before_fork()
    forks._after_in_parent()
    file.then = lambda: None
    assert not file.lock.locked()
    assert in_child(lambda: file.lock.locked()) is False  # noqa: PLW0108  # the child has another lock


def test_a_signal_handler_may_fork_while_its_thread_is_forking() -> None:
    inner = list[bool]()
    file = File()
    file.then = lambda: inner.append(in_child(lambda: file.lock.locked()))  # noqa: PLW0108
    assert in_child(lambda: "outer") == "outer"
    assert inner == [False]
    assert (file.closed, file.lock.locked()) == (1, False)


def test_a_fork_waits_for_who_makes_a_file() -> None:
    began, done = threading.Event(), list[str]()

    def make() -> None:
        with forks.without_forks():
            began.set()
            done.append("made")

    thread = threading.Thread(target=make)
    thread.start()
    began.wait()
    assert in_child(lambda: done) == ["made"]
    thread.join()


def test_forks_of_several_threads_take_turns() -> None:
    file, found = File(), list[bool]()

    def fork() -> None:
        found.append(in_child(lambda: file.lock.locked()))  # noqa: PLW0108

    threads = [threading.Thread(target=fork) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [False] * 4
