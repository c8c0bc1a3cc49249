"""Measure several ways of doing one thing fairly, and write down what came out.

A machine is not equally fast for a minute on end, so contenders take turns: A B C, A B C, ... in
short trials. Ratios are taken inside a round, where all had the same weather, and then the median of
the rounds. How far the limit itself wandered is the noise, and is printed.

Knows nothing of Redis, Django or event loops: a trial is a function that performs an operation so many
times and says how many seconds that took.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

Trial = Callable[[int], float]

MAX_COUNT = 1_000_000
BUSY_CHECK = 500_000  # calls, some tens of milliseconds: longer than a scheduler's turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure: ``rounds`` of trials of about ``seconds`` each; ``repeats`` fresh processes."""

    rounds: int
    seconds: float
    repeats: int


QUICK = Plan(rounds=7, seconds=0.012, repeats=3)
FULL = Plan(rounds=25, seconds=0.05, repeats=11)


def pin_to_one_core() -> int | None:
    """Keep this process, and what it starts from now on, on the core with least to do; return which.

    None where the system cannot. Where client and server wake each other up over two cores, a figure is
    as much about the scheduler as about the code.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = min(os.sched_getaffinity(0), key=seconds_on)
    os.sched_setaffinity(0, {core})
    return core


def seconds_on(core: int) -> float:
    """Move to ``core`` and return how long a loop takes there: longer where others are at work."""
    os.sched_setaffinity(0, {core})
    return time_calls(lambda: None, BUSY_CHECK)


def time_calls(call: Callable[[], object], count: int) -> float:
    """Return how many seconds ``count`` calls took, one after another."""
    started = time.perf_counter()
    for _ in repeat(None, count):
        call()
    return time.perf_counter() - started


def calibrate(trial: Trial, seconds: float) -> int:
    """Return how many operations make a trial of about ``seconds``; at least one. Warms the trial up."""
    count = 1
    # The best of three: a single trial may have met somebody else's turn on the processor.
    while (elapsed := min(trial(count) for _ in range(3))) < seconds / 4 and count < MAX_COUNT:
        count *= 4
    return max(1, min(MAX_COUNT, round(count * seconds / max(elapsed, 1e-9))))


def interleave(trials: Mapping[str, Trial], plan: Plan) -> Samples:
    """Run every trial once a round, in turns, and return what one operation took in each round."""
    counts = {name: calibrate(trial, plan.seconds) for name, trial in trials.items()}
    samples = Samples()
    gc.collect()
    is_frozen = gc.get_freeze_count() > 0  # by whoever measures, or tests: then it stays so
    gc.freeze()  # what the peers have imported is not garbage that the measured code should pay for
    try:
        for _ in range(plan.rounds):
            for name, trial in trials.items():
                samples.add(name, trial(counts[name]) / counts[name])
    finally:
        if not is_frozen:
            gc.unfreeze()
    return samples


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the value below which ``fraction`` (0 to 1) of ``values`` lie, interpolated."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(slots=True)
class Samples:
    """Seconds for one operation, by contender, a value a round; the n-th values of all are of one round."""

    by_name: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        self.by_name.setdefault(name, []).append(seconds)

    def divided(self, by: int) -> Samples:
        """Return the samples of one operation where a trial counted ``by`` of them as one."""
        return Samples({name: [value / by for value in values] for name, values in self.by_name.items()})

    def median(self, name: str) -> float:
        """Return the typical seconds of ``name``."""
        return statistics.median(self.by_name[name])

    def ratio(self, name: str, base: str) -> float:
        """Return how many times ``base`` it takes: the median of what each round says."""
        return statistics.median(mine / its for mine, its in self._rounds(name, base))

    def added(self, name: str, base: str) -> float:
        """Return how many seconds more than ``base`` it takes: the median of what each round says."""
        return statistics.median(mine - its for mine, its in self._rounds(name, base))

    def spread(self, name: str) -> tuple[float, float]:
        """Return the 10th and the 90th percentile of ``name``, in seconds."""
        values = self.by_name[name]
        return percentile(values, 0.1), percentile(values, 0.9)

    def _rounds(self, name: str, base: str) -> zip[tuple[float, float]]:
        return zip(self.by_name[name], self.by_name[base], strict=True)


@dataclass(frozen=True, slots=True)
class Target:
    """The figure to hold: at most ``bound``, in ``unit``; ``added`` is said with a plus, over a peer."""

    bound: float
    unit: str
    added: bool = False

    def text(self, figure: float | None = None) -> str:
        """Return the bound, or another ``figure`` in its terms, as people read it."""
        value = self.bound if figure is None else figure
        number = f"{value:g}" if figure is None else f"{value:.2f}"
        plus = "+" if self.added and value >= 0 else ""
        return f"{plus}{number}{self.unit}"

    def is_met(self, figure: float) -> bool:
        """Return whether ``figure`` holds; judged as printed, so that no table contradicts itself."""
        return round(figure, 2) <= self.bound


@dataclass(frozen=True, slots=True)
class Cell:
    """What one contender did in one row: the text for people, the facts for programs."""

    text: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One operation: what each contender did, and ``figure``, which is ours in terms of ``target``.

    ``broken`` says what else was promised and not kept.
    """

    slug: str
    title: str
    cells: Mapping[str, Cell]
    figure: float
    target: Target | None = None
    broken: str = ""

    def verdict(self) -> str:
        """Return in words whether the target is held."""
        if self.target is None:
            return ""
        is_met = self.target.is_met(self.figure) and not self.broken
        facts = "; ".join(filter(None, [self.target.text(self.figure), self.broken]))
        return f"{'met' if is_met else '**missed**'} ({facts})"

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON can hold it."""
        return {
            "row": self.slug,
            "title": self.title,
            "hold": self.target.text() if self.target else None,
            "figure": self.figure,
            "verdict": self.verdict().replace("*", ""),
            "contenders": {name: dict(cell.facts) for name, cell in self.cells.items()},
        }


@dataclass(slots=True, kw_only=True)
class Table:
    """Rows that share their contenders; ``note`` says how to read it."""

    title: str
    note: str
    contenders: Sequence[str]
    rows: list[Row]
    footnotes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Return heading, note, table and footnotes."""
        header = ["", *self.contenders, "hold", "redis_infra holds it"]
        lines = [self._line(header), self._line(["---"] + ["---:"] * (len(header) - 2) + ["---"])]
        lines += [self._line(self._texts(row)) for row in self.rows]
        return "\n\n".join([f"### {self.title}", self.note, "\n".join(lines), *self.footnotes]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Return the table as JSON can hold it."""
        return {
            "title": self.title,
            "note": self.note,
            "rows": [row.as_dict() for row in self.rows],
            "footnotes": self.footnotes,
        }

    def _texts(self, row: Row) -> list[str]:
        cells = [row.cells[name].text if name in row.cells else "" for name in self.contenders]
        return [row.title, *cells, row.target.text() if row.target else "", row.verdict()]

    @staticmethod
    def _line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"


def duration(seconds: float) -> str:
    """Return ``seconds`` in the unit a person would choose, to three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{digits(seconds / size)} {unit}"
    return f"{seconds * 1e6:.2f} µs"


def digits(value: float) -> str:
    """Return ``value`` with about three digits and no exponent."""
    for bound, places in ((100.0, 0), (10.0, 1)):
        if abs(value) >= bound:
            return f"{value:,.{places}f}"
    return f"{value:.2f}"


def ratio_row(
    slug: str, title: str, samples: Samples, *, base: str, ours: str, target: Target | None = None
) -> Row:
    """Return a row whose cells say seconds and times ``base``."""
    return Row(
        slug=slug,
        title=title,
        cells={name: ratio_cell(samples, name, base) for name in samples.by_name},
        target=target,
        figure=samples.ratio(ours, base),
    )


def ratio_cell(samples: Samples, name: str, base: str) -> Cell:
    """Return what ``name`` took, and how many times ``base`` that is."""
    ratio = samples.ratio(name, base)
    low, high = samples.spread(name)
    facts = {
        "median_us": round(samples.median(name) * 1e6, 3),
        "ratio": round(ratio, 3),
        "p10_us": round(low * 1e6, 3),
        "p90_us": round(high * 1e6, 3),
    }
    return Cell(f"{duration(samples.median(name))} ({ratio:.2f} x)", facts)


def noise_note(base: str, spreads: Mapping[str, tuple[float, float]]) -> str:
    """Return how far ``base`` wandered from round to round, row by row."""
    rows = "; ".join(
        f"{title}: {duration(low)} to {duration(high)}" for title, (low, high) in spreads.items()
    )
    return f"Noise, 10th to 90th percentile of {base}: {rows}."
