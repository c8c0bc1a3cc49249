"""How far a limit can be overrun: eight processes at once, bursts where windows change, a crash of Redis.

Each trial has processes and a server of its own (:mod:`benchmarks.attack_child`). An admission is known to
lie between the moment before the question and the moment after the answer; more than the limit whose moments
all fit into one window is a violation, and nothing less certain is: noise hides violations and makes none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.attack_child import CRASH, PROCESSES, RETURN, questions
from benchmarks.children import run_child
from benchmarks.harness import FULL, Cell, Plan, Row, Table, Target
from benchmarks.peers import OURS
from benchmarks.throttle_peers import PEERS, absence_notes, installed

ROWS = ("race", "attack")

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
"""Read before the process is pinned to one of them."""
DAY = 86_400
LIMITS = (5, 20, 30, 100, 1000)
RUNS = 5
LIMIT = 20
RESTART_WINDOW = 5
"""Seconds: longer than clients that wait and try again need to find Redis again."""
TITLES = {
    "aligned": "burst and drip, by the clock",
    "learnt": "burst and drip, by the visitor's window",
    "restart": "Redis dies and returns empty",
}
NONE_OVER = Target(0, " over")

Admission = Sequence[float]
"""When it was asked for, and when it was told: seconds of one clock."""


def table(slug: str, plan: Plan, say: Callable[[str], None]) -> Table:
    """Measure one of ``ROWS``."""
    say(slug)
    return race_table(plan) if slug == "race" else attack_table(plan)


# Eight at once


@dataclass(frozen=True, slots=True)
class Race:
    """How many were let through in each run, of more than twice the limit."""

    limit: int
    admitted: Sequence[int]

    @property
    def over(self) -> int:
        return max(0, max(self.admitted) - self.limit)

    @property
    def under(self) -> int:
        return max(0, self.limit - min(self.admitted))

    def cell(self) -> Cell:
        least, most = min(self.admitted), max(self.admitted)
        text = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        asked = PROCESSES * questions(self.limit)
        return Cell(text, {"admitted": list(self.admitted), "asked": asked, "limit": self.limit})


def race_table(plan: Plan) -> Table:
    """Return how many each limiter lets through when eight processes ask at the same moment."""
    runs = RUNS if plan is FULL else 1
    task = {"kind": "race", "limits": LIMITS, "runs": runs, "window": DAY, "cores": CORES}
    return Table(
        title="Throttling, eight processes at once",
        note=(
            f"How many were let through of more than twice the limit, in {runs_of(runs)}: "
            "the least and the most, where runs differ."
        ),
        contenders=[race_title(limit) for limit in LIMITS],
        rows=[race_row(name, races_of(child(name, task))) for name in subjects(plan)],
        footnotes=absence_notes(),
    )


def races_of(found: Sequence[Mapping[str, Sequence[int]]]) -> list[Race]:
    """Return the races of each limit from what every process says of its own admissions."""
    return [
        Race(limit, [sum(run) for run in zip(*[mine[str(limit)] for mine in found], strict=True)])
        for limit in LIMITS
    ]


def race_row(name: str, races: Sequence[Race]) -> Row:
    """Return one limiter's row."""
    under = max(race.under for race in races)
    return Row(
        slug="race",
        title=name,
        cells={race_title(race.limit): race.cell() for race in races},
        figure=max(race.over for race in races),
        target=NONE_OVER if name == OURS else None,
        broken=f"{under} turned away for nothing" if under else "",
    )


def race_title(limit: int) -> str:
    return f"{limit:,} a day"


# Any window


@dataclass(frozen=True, slots=True)
class Attack:
    """The most that was let through within one window, and what was raised meanwhile."""

    most: int
    raised: Sequence[str]

    def cell(self) -> Cell:
        said = f", raises {', '.join(self.raised)}" if self.raised else ""
        return Cell(f"{self.most}{said}", {"most": self.most, "limit": LIMIT, "raised": list(self.raised)})


def attack_table(plan: Plan) -> Table:
    """Return the most that each limiter lets through within one window, whoever attacks."""
    window, runs = (2, 3) if plan is FULL else (1, 1)
    windows = {"aligned": window, "learnt": window, "restart": RESTART_WINDOW}
    task = {"kind": "attacks", "attacks": [*TITLES], "limit": LIMIT, "windows": windows, "cores": CORES}
    names = subjects(plan) * runs
    # Beside each other: most of the time they wait for windows to end.
    with ThreadPoolExecutor(3 if plan is FULL else 5) as pool:
        answers = list(zip(names, pool.map(lambda name: child(name, task), names), strict=True))
    return Table(
        title="Throttling, the most in any window",
        note=(
            f"The most certainly let through within {window} s where {LIMIT} may pass; the worst of "
            f"{runs_of(runs)} with eight processes. Redis is away from {CRASH} s to {RETURN} s, in a window "
            f"of {RESTART_WINDOW} s. Who raises lets nobody through at that moment."
        ),
        contenders=list(TITLES.values()),
        rows=[
            attack_row(name, attacks_of([found for whose, found in answers if whose == name], windows))
            for name in subjects(plan)
        ],
        footnotes=absence_notes(),
    )


def attacks_of(
    runs: Sequence[Sequence[Mapping[str, Any]]], windows: Mapping[str, float]
) -> dict[str, Attack]:
    """Return the worst of all runs, from what every process of each says of every attack."""
    return {
        attack: Attack(
            max(
                most_within((admission for mine in found for admission in mine[attack][0]), window)
                for found in runs
            ),
            sorted({error for found in runs for mine in found for error in mine[attack][1]}),
        )
        for attack, window in windows.items()
    }


def attack_row(name: str, attacks: Mapping[str, Attack]) -> Row:
    """Return one limiter's row."""
    raised = sorted({error for attack in attacks.values() for error in attack.raised})
    return Row(
        slug="attack",
        title=name,
        cells={TITLES[attack]: found.cell() for attack, found in attacks.items()},
        figure=max(0, max(attack.most for attack in attacks.values()) - LIMIT),
        target=NONE_OVER if name == OURS else None,
        broken=f"raises {', '.join(raised)}" if raised else "",
    )


def most_within(admissions: Iterable[Admission], window: float) -> int:
    """Return the most admissions that were asked for and told within less than ``window`` seconds."""
    ordered = sorted(admissions, key=lambda admission: admission[1])
    return max(
        (
            sum(asked > told - window for asked, _ in ordered[: at + 1])
            for at, (_, told) in enumerate(ordered)
        ),
        default=0,
    )


# Children


def child(name: str, task: Mapping[str, Any]) -> list[Any]:
    """Have one task done by processes of their own; return what each of them found."""
    found: list[Any] = run_child("benchmarks.attack_child", name, json.dumps(task))
    return found


def subjects(plan: Plan) -> list[str]:
    """Return who is attacked: in a hurry one of each package."""
    return [name for name in installed() if plan is FULL or name in PEERS]


def runs_of(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
