"""Whatever happens in whatever order: nobody sees what was invalidated before he began to read."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from redis_infra.querycache.index import BUCKETS
from tests.faults.outages import KINDS, Outage
from tests.faults.site import MARGIN, SiteProcess, wait_until
from tests.querycache.functions import Database
from tests.querycache.sabotage import SABOTAGES

if TYPE_CHECKING:
    from redis_infra.testing import RedisServer

Start = Callable[..., SiteProcess]

PROCESSES = 3
CALM = {"COMMAND_TIMEOUT": "10s", "CONNECT_TIMEOUT": "10s", "POOL_WAIT": "10s"}
"""No outage at all, however little of the processor a process gets."""

PATIENT = {"COMMAND_TIMEOUT": "1s", "BREAKER": {"probe_base": "10ms", "probe_cap": "40ms"}}
"""No timeout but in an outage: of a single one others may hear a second later, unknown to the model."""

HEARD = 1.0 * MARGIN
"""Seconds after an outage within which all processes of the host have heard what others have invalidated."""


@pytest.fixture
def play(start: Start, tmp_path: Path, database: Database) -> Callable[..., list[SiteProcess]]:
    """Let processes begin to act at random, so many steps together."""

    def begin(url: str, seed: int, steps: int, **changes: Any) -> list[SiteProcess]:
        path = str(tmp_path / "database")
        processes = [start(url, database=path, **changes) for _ in range(PROCESSES)]
        for number, process in enumerate(processes):
            process.play(seed * 10 + number, steps)
        return processes

    return begin


def verdicts(processes: list[SiteProcess]) -> list[str]:
    return [text for process in processes for text in process.verdict()]


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_invalidated_is_seen(
    seed: int, play: Callable[..., list[SiteProcess]], redis_infra_url: str, database: Database
) -> None:
    assert verdicts(play(redis_infra_url, seed, 3000, **CALM)) == []
    assert database.steps >= 3000


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 106))
def test_for_ten_thousand_steps(
    seed: int, play: Callable[..., list[SiteProcess]], redis_infra_url: str
) -> None:
    assert verdicts(play(redis_infra_url, seed, 10_000, **CALM)) == []


def wait_for_steps(database: Database, count: int, last: int = 2**62) -> None:
    """Return when so many more steps have been done, or the last one has."""
    enough = min(database.steps + count, last)
    wait_until(lambda: database.steps > enough, 30)


def lose_indexes(server: RedisServer, database: Database, steps: int) -> None:
    """Have indexes of the query cache lost again and again, until so many steps are done."""
    chance = random.Random(steps)
    while database.steps < steps:
        number = chance.choice([1, 3, BUCKETS])
        lost = chance.sample(range(BUCKETS), number)
        server.command("UNLINK", *[f"site:1:qci:{{{bucket}}}" for bucket in lost])
        # Now and then not before they were rebuilt.
        wait_for_steps(database, chance.choice([5, 50, 200]), steps - 1)


@pytest.mark.parametrize(
    ("seed", "steps"),
    [(4, 3000), pytest.param(300, 20_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])],
)
def test_nothing_invalidated_is_seen_where_indexes_are_lost(
    seed: int,
    steps: int,
    play: Callable[..., list[SiteProcess]],
    redis_server: RedisServer,
    redis_infra_url: str,
    database: Database,
) -> None:
    processes = play(redis_infra_url, seed, steps, **CALM)
    lose_indexes(redis_server, database, steps)
    assert verdicts(processes) == []


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_the_model_notices(
    sabotage: str,
    play: Callable[..., list[SiteProcess]],
    redis_server: RedisServer,
    redis_infra_url: str,
    database: Database,
) -> None:
    steps = 20_000
    processes = play(redis_infra_url, 1, steps, sabotage=sabotage, **CALM)
    if "rebuilt" in sabotage:
        lose_indexes(redis_server, database, steps)
    found = verdicts(processes)
    assert any("invalidated by" in text for text in found)


def go_through(outage: Outage, kinds: list[str], processes: list[SiteProcess], database: Database) -> None:
    """Take Redis away and bring it back, in each of these ways, while all go on."""
    for kind in kinds:
        outage.kind = kind
        database.unsettle()
        outage.begin()
        wait_for_steps(database, 200)
        outage.end()
        ended = time.monotonic()
        wait_until(lambda: all(process.is_well() for process in processes), 30)
        time.sleep(max(0.0, ended + HEARD - time.monotonic()))
        database.settle()
        wait_for_steps(database, 200)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_invalidated_is_seen_with_an_outage(
    kind: str,
    play: Callable[..., list[SiteProcess]],
    make_outage: Callable[[str], Outage],
    database: Database,
) -> None:
    outage = make_outage(kind)
    processes = play(outage.url, 3, 10**9, **PATIENT)
    wait_for_steps(database, 300)
    go_through(outage, [kind], processes, database)
    database.finish()
    assert verdicts(processes) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(200, 203))
def test_for_many_outages(
    seed: int,
    play: Callable[..., list[SiteProcess]],
    make_outage: Callable[[str], Outage],
    database: Database,
) -> None:
    outage = make_outage("killed")
    processes = play(outage.url, seed, 10**9, **PATIENT)
    go_through(outage, [*KINDS] * 4, processes, database)
    database.finish()
    assert verdicts(processes) == []
