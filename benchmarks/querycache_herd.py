"""The herd: how often 256 callers in four processes compute one value, and how long they wait for it.

Each contender has processes and a server of its own (:mod:`benchmarks.querycache_herd_child`), on all cores.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.children import run_child
from benchmarks.harness import FULL, Cell, Plan, Row, Table, Target, duration
from benchmarks.peers import OURS
from benchmarks.querycache_herd_child import CALLERS, HERDS, LIMIT, NEEDS, PROCESSES, SECONDS
from benchmarks.querycache_peers import is_installed, presence_notes

ROWS = ("herd",)

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
"""Read before the process is pinned to one of them."""
RUNS = 5
ONCE = Target(1, "")
SLOWEST = Target(260, " ms")
MEDIAN = Target(3, " ms")
CROWDED = Target(2, " x")
"""All at one instant wait for the processor and for each other, whatever they read: times the limit."""


@dataclass(frozen=True, slots=True)
class Act:
    """What happened when all asked at once: the seconds of every caller, and how often it was computed."""

    waited: Sequence[float]
    computed: int


@dataclass(frozen=True, slots=True)
class Herd:
    """What one contender did, run by run, and what it raised."""

    cold: Sequence[Act]
    stale: Sequence[Act]
    spread: Sequence[Act]
    raised: Mapping[str, int]

    @classmethod
    def of(cls, found: Sequence[Mapping[str, Any]]) -> Herd:
        """Return it from what every process says."""
        raised: dict[str, int] = {}
        for mine in found:
            for error, times in mine["raised"].items():
                raised[error] = raised.get(error, 0) + times
        cold, stale, spread = (
            acts_of([mine[kind] for mine in found]) for kind in ("cold", "stale", "spread")
        )
        return cls(cold, stale, spread, raised)


def acts_of(found: Sequence[Sequence[tuple[Sequence[float], int]]]) -> list[Act]:
    """Return the acts of all processes together; each has seen how often all of them computed."""
    return [
        Act([seconds for waited, _ in run for seconds in waited], max(computed for _, computed in run))
        for run in zip(*found, strict=True)
    ]


def tables(plan: Plan, say: Callable[[str], None]) -> list[Table]:
    """Measure each contender."""
    runs = RUNS if plan is FULL else 1
    herds = {}
    for name in HERDS:
        if name not in NEEDS or is_installed(NEEDS[name]):
            say(f"herd: {name}")
            task = {"runs": runs, "cores": CORES}
            herds[name] = Herd.of(run_child("benchmarks.querycache_herd_child", name, json.dumps(task)))
    return [
        Table(
            title="Query cache, a herd",
            note=(
                f"{PROCESSES} processes of {CALLERS} callers want one value at the same moment, on all cores."
                f" It takes {SECONDS * 1000:.0f} ms. Computations: the most of {runs_of(runs)}; callers: the "
                "median run. Where an expired value is there, it can be served: ours with `stale=`, dogpile "
                f"by its expiration time, cashews by `early`. {LIMIT} is as many callers who read something "
                "else, that is there: on few cores they wait for each other, whatever the cache."
            ),
            contenders=list(herds),
            rows=rows_of(herds),
            footnotes=presence_notes(),
        )
    ]


def rows_of(herds: Mapping[str, Herd]) -> list[Row]:
    """Return what was computed, and who waited how long."""
    cold = {name: herd.cold for name, herd in herds.items() if herd.cold}
    stale = {name: herd.stale for name, herd in herds.items() if herd.stale}
    spread = {name: herd.spread for name, herd in herds.items() if herd.spread}
    broken = raised_by(herds)
    arriving = f"arriving for {SECONDS * 1000:.0f} ms"
    return [
        computed_row("computations, nothing there", cold, broken),
        waited_row("slowest caller, nothing there", cold, max, SLOWEST, broken),
        computed_row("computations, an expired value there", stale, broken),
        waited_row("median caller, an expired value there", stale, statistics.median, CROWDED, broken),
        waited_row("slowest caller, an expired value there", stale, max, None, broken),
        waited_row(f"median caller of it, {arriving}", spread, statistics.median, MEDIAN, broken),
    ]


def raised_by(herds: Mapping[str, Herd]) -> dict[str, str]:
    """Return in words what contenders raised, of those that did."""
    return {
        name: "raises " + ", ".join(f"{error} {times} times" for error, times in sorted(herd.raised.items()))
        for name, herd in herds.items()
        if herd.raised
    }


def computed_row(title: str, acts: Mapping[str, Sequence[Act]], broken: Mapping[str, str]) -> Row:
    """Return how often the value was computed, in the worst run."""
    most = {name: max(act.computed for act in runs) for name, runs in acts.items() if name != LIMIT}
    cells = {name: cell(str(times), {"computed": times}, broken.get(name)) for name, times in most.items()}
    return Row(
        slug="herd", title=title, cells=cells, figure=most[OURS], target=ONCE, broken=broken.get(OURS, "")
    )


def waited_row(
    title: str,
    acts: Mapping[str, Sequence[Act]],
    pick: Callable[[Sequence[float]], float],
    target: Target | None,
    broken: Mapping[str, str],
) -> Row:
    """Return how long the caller that ``pick`` chooses of each run took: the median of the runs.

    A ``target`` in times is of what the limit took.
    """
    picked = {name: [pick(act.waited) for act in runs] for name, runs in acts.items()}
    cells = {
        name: cell(
            duration(statistics.median(each)),
            {"seconds": [round(seconds, 5) for seconds in each]},
            broken.get(name),
        )
        for name, each in picked.items()
    }
    figure = statistics.median(picked[OURS])
    figure = figure / statistics.median(picked[LIMIT]) if target is CROWDED else 1000 * figure
    return Row(
        slug="herd", title=title, cells=cells, figure=figure, target=target, broken=broken.get(OURS, "")
    )


def cell(text: str, facts: Mapping[str, Any], raised: str | None) -> Cell:
    """Return a cell, which says too what was raised."""
    return Cell(f"{text}, {raised}" if raised else text, {**facts, "raised": raised or ""})


def runs_of(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
