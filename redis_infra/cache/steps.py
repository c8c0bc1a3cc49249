"""Steps: what an algorithm wants done, so that it is written once for threads and for tasks.

An algorithm is a generator. It yields steps, is sent what they come to or has their errors thrown into it,
and returns its answer; :func:`carry_out` and :func:`acarry_out` do the waiting.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation

from redis_infra.cache.engine import Engine
from redis_infra.cache.operations import Plan

__all__ = ["Call", "Fetch", "Fly", "Step", "Steps", "Work", "acarry_out", "carry_out"]


class Fetch(NamedTuple):
    """What is stored under a name, as bytes."""

    name: str


class Call(NamedTuple):
    """Call a function of the site's; in an event loop, await what it returns if that can be awaited."""

    function: Callable[[], Any]


class Work(NamedTuple):
    """Call a function of ours, which is quick but may evaluate a queryset: that is for a thread."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


class Fly(NamedTuple):
    """Do steps as the one caller of this process that does, or get what that one came to."""

    key: str
    steps: Callable[[], Generator[Any, Any, Any]]
    alone: Callable[[bool], Generator[Any, Any, Any]]
    """For a caller that must not wait: who leads may be waiting for this very one. Or not any longer: it is
    told whether he has waited."""


Step: TypeAlias = Plan | float | Fetch | Call | Work | Fly
"""A plan for the engine, a pause in seconds, or one of the above."""
Steps: TypeAlias = Generator[Step, Any, Any]


def carry_out(engine: Engine, steps: Steps) -> Any:
    """Carry out all steps, and return the answer."""
    advance: Callable[[Any], Step] = steps.send
    reply: Any = None
    try:
        while True:
            step = advance(reply)
            try:
                reply = _done(engine, step)
            except BaseException as error:
                advance, reply = steps.throw, error
            else:
                advance = steps.send
    except StopIteration as end:
        return end.value


def _done(engine: Engine, step: Step) -> Any:
    if isinstance(step, Plan):
        return engine.run(step)
    if isinstance(step, Fetch):
        return engine.fetch(step.name)
    if isinstance(step, Call):
        return step.function()
    if isinstance(step, Work):
        return step.function(*step.args)
    if isinstance(step, Fly):
        return engine.flights.do(
            step.key,
            lambda: carry_out(engine, step.steps()),
            lambda has_waited: carry_out(engine, step.alone(has_waited)),
        )
    time.sleep(step)
    return None


async def acarry_out(engine: Engine, steps: Steps) -> Any:
    """:func:`carry_out` in the running event loop."""
    advance: Callable[[Any], Step] = steps.send
    reply: Any = None
    try:
        while True:
            step = advance(reply)
            try:
                reply = await _adone(engine, step)
            except BaseException as error:
                advance, reply = steps.throw, error
            else:
                advance = steps.send
    except StopIteration as end:
        return end.value


async def _adone(engine: Engine, step: Step) -> Any:
    if isinstance(step, Plan):
        return await engine.arun(step)
    if isinstance(step, Fetch):
        return await engine.afetch(step.name)
    if isinstance(step, Call):
        found = step.function()
        return await found if inspect.isawaitable(found) else found
    if isinstance(step, Work):
        try:
            return step.function(*step.args)
        except SynchronousOnlyOperation:
            return await sync_to_async(step.function, thread_sensitive=True)(*step.args)
    if isinstance(step, Fly):
        return await engine.flights.ado(
            step.key,
            lambda: acarry_out(engine, step.steps()),
            lambda has_waited: acarry_out(engine, step.alone(has_waited)),
        )
    await asyncio.sleep(step)
    return None
