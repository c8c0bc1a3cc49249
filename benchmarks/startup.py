"""What a process pays before it serves: importing, setting up, and the first call; in fresh interpreters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.children import run_child
from benchmarks.harness import Cell, Plan, Row, Samples, Table, Target, duration
from benchmarks.peers import BACKENDS, DJANGO_REDIS, LOCMEM, OURS
from benchmarks.server import private_server

ALONE = "Django alone"
WITH_CLIENT = "+ redis-py"
CONTENDERS = (ALONE, WITH_CLIENT, DJANGO_REDIS, OURS)

TITLES = {"set_up": "import and set-up, cache not asked yet", "ready": "... and first `set` and `get`"}
BASES = {"set_up": ALONE, "ready": WITH_CLIENT}
TARGETS = {"set_up": None, "ready": Target(10, " ms", added=True)}
ROWS = tuple(TITLES)


@dataclass(slots=True)
class Findings:
    """Seconds by row and contender, and who had imported redis-py before anybody asked for it."""

    samples: dict[str, Samples] = field(default_factory=lambda: {slug: Samples() for slug in ROWS})
    early: set[str] = field(default_factory=set)

    def add(self, name: str, answer: dict[str, Any]) -> None:
        """Take in what one child printed."""
        for slug in ROWS:
            self.samples[slug].add(name, answer[slug])
        if answer["imported_early"]:
            self.early.add(name)


def table(rows: Sequence[str], plan: Plan, say: Callable[[str], None]) -> Table:
    """Measure ``rows`` in ``plan.repeats`` fresh processes a contender, in turns."""
    say("start-up")
    with private_server() as server:
        told = {name: arguments(name, server.url) for name in CONTENDERS}
        findings = measure(told, plan.repeats)
    return Table(
        title="Start-up",
        note=(
            f"Median of {plan.repeats} fresh interpreters; in brackets what is added, in the same round, to "
            f"{ALONE} (first row) and to Django {WITH_CLIENT} (second)."
        ),
        contenders=CONTENDERS,
        rows=[row(slug, findings) for slug in rows],
        footnotes=[early_note(findings)],
    )


def arguments(name: str, url: str) -> list[str]:
    """Return what the child has to be told to measure ``name``."""
    backend = BACKENDS.get(name, BACKENDS[LOCMEM])
    location = url if backend.on_redis else ""
    app = OURS if name == OURS else ""
    client_url = url if name == WITH_CLIENT else ""
    return [backend.path, location, app, client_url]


def measure(told: dict[str, list[str]], repeats: int) -> Findings:
    """Run the children in turns. The first round only compiles and warms the disk's cache."""
    findings = Findings()
    with TemporaryDirectory() as bytecode:
        for number in range(repeats + 1):
            for name, words in told.items():
                answer = run_child("benchmarks.startup_child", *words, bytecode=bytecode)
                if number:
                    findings.add(name, answer)
    return findings


def row(slug: str, findings: Findings) -> Row:
    """Return one row of the table."""
    samples, base = findings.samples[slug], BASES[slug]
    return Row(
        slug=slug,
        title=TITLES[slug],
        cells={name: cell(samples, name, base) for name in samples.by_name},
        target=TARGETS[slug],
        figure=samples.added(OURS, base) * 1e3,
        broken="imports redis before the first call" if OURS in findings.early else "",
    )


def cell(samples: Samples, name: str, base: str) -> Cell:
    """Return what ``name`` took, and what it adds to ``base``."""
    median, added = samples.median(name), samples.added(name, base)
    low, high = samples.spread(name)
    more = "" if name == base else f" ({added * 1e3:+.1f} ms)"
    facts = {
        "median_ms": round(median * 1e3, 3),
        "added_ms": round(added * 1e3, 3),
        "p10_ms": round(low * 1e3, 3),
        "p90_ms": round(high * 1e3, 3),
    }
    return Cell(f"{duration(median)}{more}", facts)


def early_note(findings: Findings) -> str:
    """Return in words who imports redis-py although nobody has asked the cache yet."""
    said = [
        f"{name} imports `redis` {'before' if name in findings.early else 'only at'} the first call"
        for name in (DJANGO_REDIS, OURS)
    ]
    return "; ".join(said) + "."
