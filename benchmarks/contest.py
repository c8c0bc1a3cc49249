"""A contest: contenders that do the same operations, checked first, then timed in turns.

What suites share. A suite says who contends, which operations there are, and what ours has to hold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

from benchmarks.harness import Plan, Row, Table, Target, Trial, interleave, noise_note, ratio_row, time_calls
from benchmarks.peers import LOCMEM, OURS, Operation

Say = Callable[[str], None]
AsyncCall = Callable[[], Awaitable[object]]


class WrongAnswerError(Exception):
    """A contender did not do what is to be timed, so its time would mean nothing."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A row to measure and the ratio to the limit that ours has to hold, if there is one.

    ``each`` is how many operations one call, or one turn of all tasks, makes.
    """

    slug: str
    title: str
    target: Target | None = None
    each: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Contenders for one table, in the order of its columns, the limit first. Some may lack an operation.

    ``runner`` is the event loop of a contest of awaited calls. ``commands`` tells how many commands the
    server has executed; contenders that are ``elsewhere`` need not have it execute any.
    """

    title: str
    note: str
    contenders: Mapping[str, Mapping[str, Operation]]
    commands: Callable[[], int]
    runner: asyncio.Runner | None = None
    elsewhere: Collection[str] = (LOCMEM,)

    @property
    def base(self) -> str:
        return next(iter(self.contenders))

    def table(self, specs: Sequence[Spec], plan: Plan, say: Say) -> Table:
        """Measure ``specs``, telling ``say`` which one is in work.

        Raises:
            WrongAnswerError: A contender did something else than what is to be timed.
        """
        table = Table(title=self.title, note=self.note, contenders=list(self.contenders), rows=[])
        spreads: dict[str, tuple[float, float]] = {}
        for spec in specs:
            say(spec.slug)
            row, spreads[spec.title] = self._measure(spec, plan)
            table.rows.append(row)
        table.footnotes.append(noise_note(f"`{self.base}`", spreads))
        return table

    def trial(self, operation: Operation) -> Trial:
        """Return the timed repetition of ``operation``."""
        if self.runner is None:
            return partial(time_calls, operation.call)
        run = self.runner.run
        if operation.tasks == 1:
            return lambda count: run(time_awaits(operation.call, count))
        return lambda count: run(time_together(operation.call, count, operation.tasks))

    def _measure(self, spec: Spec, plan: Plan) -> tuple[Row, tuple[float, float]]:
        self._check_all(spec.slug)
        trials = {name: self.trial(operation) for name, operation in self._doing(spec.slug).items()}
        samples = interleave(trials, plan).divided(spec.each)
        self._check_all(spec.slug)  # nobody slipped away to a fallback in the meantime
        row = ratio_row(spec.slug, spec.title, samples, base=self.base, ours=OURS, target=spec.target)
        return row, samples.spread(self.base)

    def _check_all(self, slug: str) -> None:
        for name, operation in self._doing(slug).items():
            self._check(f"{name}: {slug}", operation, on_redis=name not in self.elsewhere)

    def _doing(self, slug: str) -> dict[str, Operation]:
        """Return who has this operation."""
        return {name: operations[slug] for name, operations in self.contenders.items() if slug in operations}

    def _check(self, what: str, operation: Operation, *, on_redis: bool) -> None:
        operation.prepare()
        before = self.commands()
        result = self._perform(operation)
        asked = self.commands() - before - 1  # less the question itself
        if not operation.is_right(result):
            raise WrongAnswerError(f"{what} gave {result!r:.200}")
        if on_redis and not asked:
            raise WrongAnswerError(f"{what} did not ask Redis")

    def _perform(self, operation: Operation) -> Any:
        if self.runner is None:
            return operation.call()
        return self.runner.run(await_one(operation.call))


async def await_one(call: AsyncCall) -> object:
    """Return what one awaited call gives."""
    return await call()


async def time_awaits(call: AsyncCall, count: int) -> float:
    """Return how many seconds ``count`` calls took, each awaited before the next."""
    started = time.perf_counter()
    for _ in repeat(None, count):
        await call()
    return time.perf_counter() - started


async def time_together(call: AsyncCall, count: int, tasks: int) -> float:
    """Return how many seconds ``tasks`` tasks took that each awaited ``count`` calls, one after another.

    Starting the tasks is not timed: it costs every contender the same and is not what is compared.
    """
    start = asyncio.Event()

    async def work() -> None:
        await start.wait()
        for _ in repeat(None, count):
            await call()

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(work())
        await asyncio.sleep(0)
        started = time.perf_counter()
        start.set()
    return time.perf_counter() - started
