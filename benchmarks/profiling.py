"""Where one operation's time goes: Python function calls per operation, which is what can be saved.

Under the profiler every call costs extra, so read the counts and the shares, not the microseconds.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cache import ASYNC, SYNC, async_contest, configured_server, sync_contest
from benchmarks.contest import Contest
from benchmarks.harness import Trial

COUNT = 2000
SHOWN = 30
OPERATIONS = tuple(spec.slug for spec in (*SYNC, *ASYNC))


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One function's part: calls per operation, its own seconds per operation, and those with callees."""

    name: str
    calls: float
    own: float
    total: float


def profile(operation: str, peer: str, count: int = COUNT) -> str:
    """Return a Markdown report on one operation of one peer, measured on a private server.

    Configures Django: once a process.
    """
    is_async = operation in {spec.slug for spec in ASYNC}
    with configured_server() as url, (async_contest if is_async else sync_contest)(url) as contest:
        functions = profiled(trial_of(contest, operation, peer), count)
    return report(functions, f"{peer}, `{operation}`")


def trial_of(contest: Contest, operation: str, peer: str) -> Trial:
    """Return the warm trial of ``operation``.

    Raises:
        LookupError: ``peer`` does not contend here.
    """
    if peer not in contest.contenders:
        raise LookupError(f"no contender {peer!r}; there are: {', '.join(contest.contenders)}")
    chosen = contest.contenders[peer][operation]
    chosen.prepare()
    trial = contest.trial(chosen)
    trial(100)
    return trial


def profiled(trial: Trial, count: int) -> list[Function]:
    """Return what was called in ``count`` operations, the most expensive first."""
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        trial(count)
    finally:
        profiler.disable()
    entries: dict[tuple[str, int, str], tuple[int, int, float, float, object]]
    entries = pstats.Stats(profiler).stats  # type: ignore[attr-defined]  # not in the stubs
    functions = [
        Function(name=readable(*where), calls=calls / count, own=own / count, total=total / count)
        for where, (_, calls, own, total, _) in entries.items()
    ]
    return sorted(functions, key=lambda function: function.own, reverse=True)


def readable(path: str, line: int, name: str) -> str:
    """Return how to find a function: the last two parts of its path, the line and the name."""
    if path == "~":
        return name
    return f"{'/'.join(Path(path).parts[-2:])}:{line} {name}"


def report(functions: Sequence[Function], title: str) -> str:
    """Return a table of ``functions``; what runs less than once in ten operations is only counted."""
    whole = sum(function.own for function in functions) or 1.0
    lines = [
        f"### {title}: {sum(function.calls for function in functions):.1f} function calls an operation",
        "",
        "| function | calls | own µs | share | with callees µs |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| `{it.name}` | {it.calls:.2f} | {it.own * 1e6:.2f} | {it.own / whole:.0%} | {it.total * 1e6:.1f} |"
        for it in functions[:SHOWN]
        if it.calls >= 0.1
    ]
    return "\n".join(lines) + "\n"
