"""``SingleFlight``: one computation at a time, shared by threads and tasks, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from redis_infra.resilience.single_flight import SingleFlight

forking = multiprocessing.get_context("fork")


@pytest.fixture
def flights() -> Iterator[SingleFlight]:
    group = SingleFlight(patience=60)
    yield group
    assert len(group) == 0, "an entry was left behind"


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as executor:
        yield executor


class Gate:
    """A computation that is under way until it is let go; counts how often it began."""

    def __init__(self, value: Any = "value") -> None:
        self.value = value
        self.began = threading.Event()
        self.open = threading.Event()
        self.calls = 0

    def compute(self) -> Any:
        self.calls += 1
        self.began.set()
        assert self.open.wait(60)
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value

    async def acompute(self) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, self.compute)


def waiting(group: SingleFlight, key: str) -> int:
    flight = group._flights.get(key)
    return len(flight.waiters) if flight else 0


def until(condition: Callable[[], bool]) -> None:
    """Let other threads go on until it is so; the test's own timeout ends it otherwise."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


async def auntil(condition: Callable[[], bool]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, until, condition)


def never() -> Any:
    raise AssertionError("somebody else computes this")


async def anever() -> Any:
    never()


# Threads


def test_alone_it_is_a_call(flights):
    assert flights.do("k", lambda: 7) == 7
    assert flights.do("k", lambda: 8) == 8


def test_an_exception_of_the_only_caller_is_its_own(flights):
    with pytest.raises(ZeroDivisionError):
        flights.do("k", lambda: 1 / 0)
    assert flights.do("k", lambda: 8) == 8


def test_threads_share_one_computation(flights, threads):
    gate = Gate(value := object())
    first = threads.submit(flights.do, "k", gate.compute)
    gate.began.wait()
    others = [threads.submit(flights.do, "k", never) for _ in range(20)]
    until(lambda: waiting(flights, "k") == 20)
    gate.open.set()
    assert all(future.result() is value for future in [first, *others])
    assert gate.calls == 1


def test_keys_do_not_wait_for_each_other(flights, threads):
    gate = Gate()
    first = threads.submit(flights.do, "slow", gate.compute)
    gate.began.wait()
    assert flights.do("quick", lambda: 7) == 7
    assert len(flights) == 1
    gate.open.set()
    first.result()


def test_waiters_get_the_leaders_exception(flights, threads):
    gate = Gate(ValueError("no"))
    futures = [threads.submit(flights.do, "k", gate.compute)]
    gate.began.wait()
    futures += [threads.submit(flights.do, "k", never) for _ in range(3)]
    until(lambda: waiting(flights, "k") == 3)
    gate.open.set()
    assert {future.exception() for future in futures} == {gate.value}


@pytest.mark.parametrize("end", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_a_leader_that_is_interrupted_fails_alone(flights, threads, end):
    """A worker's thread that is told to exit takes nobody with it."""
    gate = Gate(end)
    first = threads.submit(flights.do, "k", gate.compute)
    gate.began.wait()
    others = [threads.submit(flights.do, "k", lambda: "second") for _ in range(3)]
    until(lambda: waiting(flights, "k") == 3)
    gate.open.set()
    assert [future.result() for future in others] == ["second"] * 3
    assert first.exception() is end


def test_none_and_exceptions_are_values_too(flights):
    error = ValueError()
    assert flights.do("k", lambda: None) is None
    assert flights.do("k", lambda: error) is error


def test_a_thousand_callers_compute_no_more_than_they_must(flights, threads):
    """Each computation ends before the next of its key begins."""
    under_way, most = 0, 0

    def compute() -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        under_way -= 1
        return under_way

    barrier = threading.Barrier(32)

    def work() -> None:
        barrier.wait()
        for _ in range(30):
            flights.do("k", compute)

    for future in [threads.submit(work) for _ in range(32)]:
        future.result()
    assert most == 1


def test_what_is_forgotten_is_computed_anew(flights, threads):
    """A key was deleted: who asks now must not get what was read before."""
    gate = Gate("old")
    first = threads.submit(flights.do, "k", gate.compute)
    gate.began.wait()
    second = threads.submit(flights.do, "k", never)
    until(lambda: waiting(flights, "k") == 1)
    flights.forget("k")
    flights.forget("unknown")
    assert flights.do("k", lambda: "new") == "new"
    gate.open.set()
    assert (first.result(), second.result()) == ("old", "old")


def test_the_end_of_a_forgotten_flight_leaves_the_new_one_alone(flights, threads):
    old, new = Gate("old"), Gate("new")
    first = threads.submit(flights.do, "k", old.compute)
    old.began.wait()
    flights.forget("k")
    second = threads.submit(flights.do, "k", new.compute)
    new.began.wait()
    old.open.set()
    assert first.result() == "old"
    third = threads.submit(flights.do, "k", never)
    until(lambda: waiting(flights, "k") == 1)
    new.open.set()
    assert (second.result(), third.result()) == ("new", "new")


# Tasks


def test_tasks_share_one_computation(flights):
    calls = 0

    async def compute() -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return calls

    async def main() -> list[int]:
        return await asyncio.gather(*(flights.ado("k", compute) for _ in range(50)))

    assert asyncio.run(main()) == [1] * 50


def test_tasks_get_the_leaders_exception(flights):
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    async def main() -> list[BaseException | None]:
        return await asyncio.gather(*(flights.ado("k", fail) for _ in range(3)), return_exceptions=True)

    found = asyncio.run(main())
    assert [str(error) for error in found] == ["no"] * 3


def test_even_stop_iteration_reaches_a_waiting_task(flights, threads):
    """A future would refuse it; asyncio makes a RuntimeError of it when it leaves a coroutine."""
    gate = Gate(StopIteration())
    leader = threads.submit(flights.do, "k", gate.compute)
    gate.began.wait()

    async def main() -> None:
        waiter = asyncio.create_task(flights.ado("k", anever))
        await auntil(lambda: waiting(flights, "k") == 1)
        gate.open.set()
        await waiter

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(main())
    assert leader.exception() is gate.value


def test_a_waiter_that_is_cancelled_leaves_the_leader_alone(flights):
    async def main() -> str:
        gate = Gate()
        leader = asyncio.create_task(flights.ado("k", gate.acompute))
        await auntil(gate.began.is_set)
        waiters = [asyncio.create_task(flights.ado("k", anever)) for _ in range(2)]
        await auntil(lambda: waiting(flights, "k") == 2)
        waiters[0].cancel()
        await asyncio.wait([waiters[0]])
        assert waiters[0].cancelled()
        assert waiting(flights, "k") == 1
        gate.open.set()
        assert await waiters[1] == "value"
        return await leader

    assert asyncio.run(main()) == "value"


def test_a_waiter_that_is_cancelled_as_the_outcome_arrives_is_no_trouble(flights, threads):
    troubles: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: troubles.append(context))
        gate = Gate()
        leader = threads.submit(flights.do, "k", gate.compute)
        waiter = asyncio.create_task(flights.ado("k", anever))
        await auntil(lambda: waiting(flights, "k") == 1)
        gate.open.set()
        leader.result()
        waiter.cancel()
        await asyncio.wait([waiter])
        await asyncio.sleep(0)

    asyncio.run(main())
    assert troubles == []


def test_a_leader_that_is_cancelled_hands_over(flights):
    calls = []

    async def compute() -> int:
        calls.append(asyncio.current_task())
        await asyncio.sleep(0 if len(calls) > 1 else 3600)
        return len(calls)

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(flights.ado("k", compute)) for _ in range(4)]
        await auntil(lambda: waiting(flights, "k") == 3)
        tasks[0].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert calls == tasks[:2]
        return found

    cancelled, *others = asyncio.run(main())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert others == [2, 2, 2]


def test_leader_and_next_in_line_cancelled_together_leave_the_third(flights):
    async def main() -> Any:
        async def hang() -> None:
            await asyncio.sleep(3600)

        async def compute() -> str:
            return "third"

        tasks = [asyncio.create_task(flights.ado("k", hang)) for _ in range(2)]
        third = asyncio.create_task(flights.ado("k", compute))
        await auntil(lambda: waiting(flights, "k") == 2)
        for task in tasks:
            task.cancel()
        return await third

    assert asyncio.run(main()) == "third"


def test_a_loop_that_ends_with_a_leader_in_it_hands_over(flights, threads):
    """asyncio.run cancels what is left; a thread that waited for it computes."""
    began, end = threading.Event(), threading.Event()

    async def hang() -> None:
        began.set()
        await asyncio.sleep(3600)

    async def main() -> None:
        task = asyncio.create_task(flights.ado("k", hang))
        await asyncio.get_running_loop().run_in_executor(None, end.wait)
        del task

    loop = threads.submit(asyncio.run, main())
    began.wait()
    waiter = threads.submit(flights.do, "k", lambda: "mine")
    until(lambda: waiting(flights, "k") == 1)
    end.set()
    assert waiter.result() == "mine"
    loop.result()


def test_a_leader_that_is_thrown_away_hands_over(flights, threads):
    """A coroutine that nobody goes on with is closed by the garbage collector."""
    coroutine = flights.ado("k", lambda: asyncio.sleep(0))
    coroutine.send(None)
    waiter = threads.submit(flights.do, "k", lambda: "mine")
    until(lambda: waiting(flights, "k") == 1)
    del coroutine
    gc.collect()
    assert waiter.result() == "mine"


def test_the_garbage_collector_may_run_under_our_lock(flights):
    coroutine = flights.ado("k", lambda: asyncio.sleep(0))
    coroutine.send(None)
    with flights._lock:
        coroutine.close()
    assert len(flights) == 0


def test_a_leader_that_is_closed_in_another_context_hands_over(flights):
    coroutine = contextvars.copy_context().run(lambda: flights.ado("k", lambda: asyncio.sleep(0)))
    contextvars.copy_context().run(coroutine.send, None)
    coroutine.close()
    assert len(flights) == 0


def test_two_loops_share_one_computation(flights, threads):
    gate = Gate(value := object())
    first = threads.submit(asyncio.run, flights.ado("k", gate.acompute))
    gate.began.wait()
    second = threads.submit(asyncio.run, flights.ado("k", anever))
    until(lambda: waiting(flights, "k") == 1)
    gate.open.set()
    assert first.result() is second.result() is value


# Threads and tasks


def test_a_thread_waits_for_a_task(flights, threads):
    gate = Gate()
    leader = threads.submit(asyncio.run, flights.ado("k", gate.acompute))
    gate.began.wait()
    waiter = threads.submit(flights.do, "k", never)
    until(lambda: waiting(flights, "k") == 1)
    gate.open.set()
    assert (leader.result(), waiter.result()) == ("value", "value")


def test_a_task_waits_for_a_thread_without_holding_up_its_loop(flights, threads):
    gate = Gate()
    leader = threads.submit(flights.do, "k", gate.compute)
    gate.began.wait()

    async def main() -> str:
        waiter = asyncio.create_task(flights.ado("k", anever))
        await auntil(lambda: waiting(flights, "k") == 1)
        gate.open.set()
        return await waiter

    assert asyncio.run(main()) == leader.result() == "value"


def test_a_waiting_loop_that_is_closed_is_no_trouble_to_the_leader(flights, threads):
    gate = Gate()
    leader = threads.submit(flights.do, "k", gate.compute)
    gate.began.wait()
    loop = asyncio.new_event_loop()
    waiter = loop.create_task(flights.ado("k", anever))
    loop.run_until_complete(asyncio.sleep(0))
    assert waiting(flights, "k") == 1
    loop.close()
    gate.open.set()
    assert leader.result() == "value"
    waiter._log_destroy_pending = False


# Where waiting would never end


def test_a_thread_that_asks_again_for_its_own_key_computes(flights):
    assert flights.do("k", lambda: ("outer", flights.do("k", lambda: "inner"))) == ("outer", "inner")


def test_a_task_that_asks_again_for_its_own_key_computes(flights):
    async def inner() -> str:
        return "inner"

    async def outer() -> tuple[str, str]:
        return "outer", await flights.ado("k", inner)

    assert asyncio.run(flights.ado("k", outer)) == ("outer", "inner")


def test_a_task_that_asks_in_tasks_of_its_own_computes(flights):
    async def inner() -> str:
        return "inner"

    async def outer() -> list[str]:
        return await asyncio.gather(flights.ado("k", inner), flights.ado("k", inner))

    assert asyncio.run(flights.ado("k", outer)) == ["inner", "inner"]


def test_a_synchronous_caller_in_the_loops_thread_computes(flights):
    """The task that leads cannot go on while its thread waits."""

    async def main() -> tuple[str, str]:
        gate = Gate()
        leader = asyncio.create_task(flights.ado("k", gate.acompute))
        await auntil(gate.began.is_set)
        mine = flights.do("k", lambda: "mine")
        gate.open.set()
        return mine, await leader

    assert asyncio.run(main()) == ("mine", "value")


def test_a_loop_that_a_leader_runs_in_its_own_thread_computes(flights):
    async def inner() -> str:
        return "inner"

    assert flights.do("k", lambda: asyncio.run(flights.ado("k", inner))) == "inner"


def test_a_loop_in_a_leaders_thread_computes_in_whatever_context(flights):
    async def inner() -> str:
        return "inner"

    def in_a_new_context() -> str:
        return contextvars.Context().run(asyncio.run, flights.ado("k", inner))

    assert flights.do("k", in_a_new_context) == "inner"


def test_a_leader_that_asks_through_async_to_sync_computes(flights):
    async def inner() -> str:
        return "inner"

    assert flights.do("k", lambda: async_to_sync(flights.ado)("k", inner)) == "inner"


def test_a_leader_that_asks_through_sync_to_async_computes(flights):
    async def outer() -> str:
        return await sync_to_async(flights.do, thread_sensitive=False)("k", lambda: "inner")

    assert asyncio.run(flights.ado("k", outer)) == "inner"


@pytest.mark.parametrize("size", [2, 5])
def test_leaders_that_wait_for_each_other_do_not_wait_for_ever(flights, threads, size):
    """Each needs the next one's value, round in a ring: who would close the ring computes by itself."""
    all_lead = threading.Barrier(size)

    def lead(number: int) -> str:
        def compute() -> str:
            all_lead.wait()
            return flights.do((number + 1) % size, lambda: "by itself")

        return flights.do(number, compute)

    futures = [threads.submit(lead, number) for number in range(size)]
    assert [future.result(60) for future in futures] == ["by itself"] * size


def test_a_leading_task_and_a_leading_thread_do_not_wait_for_each_other(flights, threads):
    both = threading.Barrier(2)

    def in_thread() -> str:
        both.wait()
        return flights.do("task", lambda: "own task")

    async def in_task() -> str:
        await asyncio.get_running_loop().run_in_executor(None, both.wait)
        return await flights.ado("thread", lambda: asyncio.sleep(0, "own thread"))

    thread = threads.submit(flights.do, "thread", in_thread)
    task = threads.submit(asyncio.run, flights.ado("task", in_task))
    assert thread.result(60) == task.result(60) in ("own task", "own thread")


def test_a_blocked_loop_counts_as_waiting_for_all_its_tasks(flights, threads):
    """The loop's thread waits for a thread, which asks for what a task of that very loop is computing."""
    loop_blocked = threading.Event()

    def in_thread() -> str:
        loop_blocked.wait()
        until(lambda: waiting(flights, "thread") == 1)
        return flights.do("task", lambda: "own task")

    async def main() -> tuple[str, str]:
        gate = Gate("task's")
        task = asyncio.create_task(flights.ado("task", gate.acompute))
        await auntil(gate.began.is_set)
        thread = threads.submit(flights.do, "thread", in_thread)
        await auntil(lambda: len(flights) == 2)
        loop_blocked.set()
        found = flights.do("thread", never)
        gate.open.set()
        assert thread.result() == found
        return found, await task

    assert asyncio.run(main()) == ("own task", "task's")


def test_waiting_twice_for_one_flight_counts_twice(flights, threads):
    """A leader whose two tasks wait for b, one of which gives up, still waits for b."""
    gate = Gate()
    leading_b = threading.Event()

    def compute_b() -> Any:
        leading_b.set()
        gate.compute()
        return flights.do("a", lambda: "own a")

    async def compute_a() -> Any:
        tasks = [asyncio.create_task(flights.ado("b", anever)) for _ in range(2)]
        await auntil(lambda: waiting(flights, "b") == 2)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        gate.open.set()
        return await tasks[1]

    b = threads.submit(flights.do, "b", compute_b)
    leading_b.wait()
    assert asyncio.run(flights.ado("a", compute_a)) == b.result(60) == "own a"


def test_a_leader_that_gave_up_waiting_can_be_waited_for(flights, threads):
    """It was cancelled while it waited for b; b's leader may wait for it now, and need not compute."""
    gate = Gate()
    gave_up = threading.Event()

    def compute_b() -> Any:
        gate.began.set()
        gave_up.wait()
        return flights.do("a", never)

    async def compute_a() -> str:
        task = asyncio.create_task(flights.ado("b", anever))
        await auntil(lambda: waiting(flights, "b") == 1)
        task.cancel()
        await asyncio.wait([task])
        gave_up.set()
        await auntil(lambda: waiting(flights, "a") == 1)
        return "a's"

    b = threads.submit(flights.do, "b", compute_b)
    gate.began.wait()
    assert asyncio.run(flights.ado("a", compute_a)) == b.result(60) == "a's"


def test_a_thread_does_not_wait_for_ever_for_a_task_that_needs_it(threads):
    """sync_to_async may run everything in one thread; the task's turn comes when we leave it."""
    flights = SingleFlight(patience=0.01)
    one_thread = ThreadPoolExecutor(1)
    began, blocked = threading.Event(), threading.Event()

    async def needs_the_thread() -> str:
        began.set()
        await asyncio.get_running_loop().run_in_executor(None, blocked.wait)
        return await asyncio.get_running_loop().run_in_executor(one_thread, lambda: "task's")

    def in_the_thread() -> str:
        began.wait()
        blocked.set()
        return flights.do("k", lambda: "mine")

    mine = one_thread.submit(in_the_thread)
    task = threads.submit(asyncio.run, flights.ado("k", needs_the_thread))
    assert (mine.result(), task.result()) == ("mine", "task's")
    assert len(flights) == 0
    one_thread.shutdown()


def test_background_tasks_of_an_old_computation_are_nothing_special(flights):
    """They inherit that it was led here; it has ended long since."""

    async def main() -> tuple[str, str]:
        gate = Gate()
        later = asyncio.Event()
        background: list[asyncio.Task[str]] = []

        async def in_background() -> str:
            await later.wait()
            return await flights.ado("k", anever)

        async def start() -> None:
            background.append(asyncio.create_task(in_background()))

        await flights.ado("k", start)
        leader = asyncio.create_task(flights.ado("k", gate.acompute))
        await auntil(gate.began.is_set)
        later.set()
        await auntil(lambda: waiting(flights, "k") == 1)
        gate.open.set()
        return await leader, await background[0]

    assert asyncio.run(main()) == ("value", "value")


def test_a_thread_does_not_remember_what_it_led(flights):
    before = contextvars.copy_context()
    flights.do("k", lambda: None)
    with pytest.raises(ZeroDivisionError):
        flights.do("k", lambda: 1 / 0)
    after = contextvars.copy_context()
    assert [value for variable, value in after.items() if before.get(variable) != value] in ([], [()])


def test_what_was_computed_is_not_kept(flights):
    """Contexts live long; a flight in one holds no value."""

    class Value:
        alive = 0

        def __init__(self) -> None:
            Value.alive += 1

        def __del__(self) -> None:
            Value.alive -= 1

    kept: list[contextvars.Context] = []
    flights.do("k", lambda: (kept.append(contextvars.copy_context()), Value())[1])
    gc.collect()
    assert Value.alive == 0


# Forks


def result_in_child(work: Callable[[], Any]) -> Any:
    ours, theirs = forking.Pipe()
    child = forking.Process(target=lambda: theirs.send(work()))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    return ours.recv()


@pytest.mark.parametrize("told", [True, False])
def test_a_child_does_not_wait_for_its_parents_threads(flights, threads, told):
    gate = Gate()
    leader: Future[str] = threads.submit(flights.do, "k", gate.compute)
    gate.began.wait()

    def in_the_child() -> tuple[str, int]:
        if told:
            flights.after_fork()
        return flights.do("k", lambda: "child's"), len(flights)

    assert result_in_child(in_the_child) == ("child's", 0)
    gate.open.set()
    assert leader.result() == "value"


def test_a_child_is_not_held_up_by_a_lock_that_a_thread_of_its_parent_had(flights):
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with flights._lock:
            holding.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait()
    try:
        assert result_in_child(lambda: flights.do("k", lambda: "child's")) == "child's"
    finally:
        release.set()
        holder.join()


def test_a_leader_that_forks_ends_in_both_processes(flights, threads):
    """The child does not touch those who wait: their locks may be held by threads that it does not have."""
    parent, found = os.getpid(), list[str]()
    holding, release = threading.Event(), threading.Event()

    def hold_what_the_waiter_waits_on() -> None:
        with flights._flights["k"].waiters[0]._arrived._cond:
            holding.set()
            release.wait()

    def compute() -> str:
        until(lambda: waiting(flights, "k") == 1)
        holder = threading.Thread(target=hold_what_the_waiter_waits_on)
        holder.start()
        holding.wait()
        child = os.fork()
        if not child:
            return "child's"
        release.set()
        holder.join()
        return f"child ended with {os.waitpid(child, 0)[1]}"

    def lead() -> None:
        found.append(flights.do("k", compute))
        if os.getpid() != parent:
            os._exit(0 if found == ["child's"] and len(flights) == 0 else 1)

    leader = threading.Thread(target=lead)
    leader.start()
    until(lambda: len(flights) == 1)
    waiter = threads.submit(flights.do, "k", never)
    leader.join()
    assert [*found, waiter.result()] == ["child ended with 0"] * 2
