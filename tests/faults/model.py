"""A site under random operations and real faults, beside a model that knows what may be read.

Every value says which write it comes from: the write's number times a million, plus what was counted up
since. What is stale is then a comparison: a process that has taken a key away, or set it anew, may never see
an older write again, in any state; and once everybody is well no process may see what anybody has replaced.

Misses are always allowed (it is a cache), and so are the differences between processes while Redis is away.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.faults.site import MARGIN, SiteProcess, WorkerError, wait_until

if TYPE_CHECKING:
    from redis_infra.testing import TcpProxy
    from tests.faults.outages import Outage
    from tests.faults.site import Site

KEYS = tuple("abcde")
ROOM = 1_000_000
"""What one write's value may be counted up by."""

BOUND = 1.0 * MARGIN
"""Seconds after recovery in which the last process of the host has heard."""

QUICK = {
    "COMMAND_TIMEOUT": "60ms",
    "CONNECT_TIMEOUT": "60ms",
    "BREAKER": {"probe_base": "10ms", "probe_cap": "40ms"},
}


class Violation(AssertionError):
    """The site served what it may not; the text says how it came about."""


@dataclass
class Model:
    """What is known of each key: the writes so far, and from which on a reader may see them."""

    number: int = 0
    replaced: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By key: the last write or removal by anybody."""
    replaced_by: dict[tuple[int, str], int] = field(default_factory=lambda: defaultdict(int))
    """By process and key: the last one by that process."""
    counted: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """By key: the numbers at which somebody tried to count it up."""
    settled_at: int = 0
    """The number at which nothing was pending anywhere."""
    settled_before: dict[int, int] = field(default_factory=dict)
    """By number: the last one before it at which nothing was pending; what was counted since may be late."""

    def next(self) -> int:
        self.number += 1
        self.settled_before[self.number] = self.settled_at
        return self.number

    def changes(self, process: int, *keys: str) -> int:
        number = self.next()
        for key in keys:
            self.replaced[key] = self.replaced_by[process, key] = number
        return number

    def counts(self, key: str) -> None:
        self.counted[key].append(self.next())

    def objection(self, key: str, value: Any, floor: int) -> str:
        """Why nobody may read this; empty if it is right."""
        if value is None:
            return ""
        write, extra = divmod(value, ROOM)
        if write < floor:
            return f"{key!r} is write {write}, replaced by {floor}"
        if write > self.number:
            return f"{key!r} is write {write}, which never was"
        since = self.settled_before.get(write, 0)
        most = sum(number > since for number in self.counted[key])
        return f"{key!r} was counted up {extra} times, {most} at most" if extra > most else ""


class Driver:
    """Choose, do, look, and compare; ``seed`` decides all that is chosen."""

    def __init__(self, site: Site, outage: Outage, seed: int, *, processes: int = 3) -> None:
        self.random = random.Random(seed)
        self.site = site
        self.outage = outage
        self.model = Model()
        self.history: list[str] = []
        self.fault = ""
        self.recoveries = 0
        self.faces = ["sync", "async", "sync"]
        self.processes: list[SiteProcess] = [self._start(number) for number in range(processes)]

    def run(self, steps: int) -> None:
        """Do so many steps, and a last recovery.

        Raises:
            Violation: something stale was served, or counted twice.
        """
        for _ in range(steps):
            self.step()
        self.recover()

    def step(self) -> None:
        chance = self.random.random()
        if self.fault and chance < 0.12:
            self.recover()
        elif not self.fault and chance < 0.08:
            self.fault = self.random.choice(sorted(LASTING))
            self._note(f"-- {self.fault}")
            LASTING[self.fault][0](self)
        elif chance < 0.16:
            self._momentary()
        else:
            self._operate()

    # Operations

    def _operate(self) -> None:
        # One of them is idle for long stretches, and sleeps through outages.
        who = self.random.choices(range(len(self.processes)), weights=[10, 6, 1][: len(self.processes)])[0]
        OPERATIONS[self.random.choice(WEIGHTED)](self, who, self.random.choice(KEYS))

    def do(self, who: int, name: str, *args: Any) -> Any:
        try:
            answer = self.processes[who]._do(name, *args)
        except WorkerError as error:
            if error.kind != "ValueError":  # "no such key", as locmem says
                raise Violation(f"{name}{args} in {who} raised {error}\n{self.story()}") from error
            answer = "ValueError"
        self._note(f"{who}: {name}{args} -> {answer}")
        return answer

    def look(self, who: int, key: str) -> None:
        """Read, and compare with what this very process has done."""
        value = self.do(who, "get", key)
        self.check(who, key, value, self.model.replaced_by[who, key])

    def check(self, who: int, key: str, value: Any, floor: int) -> None:
        objection = self.model.objection(key, value, floor)
        if objection:
            raise Violation(f"process {who}: {objection}\n{self.story()}")

    # Faults

    def _momentary(self) -> None:
        name = self.random.choice(sorted(MOMENTARY))
        self._note(f"-- {name}")
        MOMENTARY[name](self)

    def recover(self) -> None:
        """Bring Redis back, and expect nothing replaced to be seen, within the bound, by anybody."""
        self._note(f"-- end of {self.fault or 'nothing'}")
        if self.fault:
            LASTING[self.fault][1](self)
        self.fault = ""
        self.recoveries += 1
        wait_until(self._all_well, 5 * MARGIN)
        deadline = time.monotonic() + BOUND
        while objection := self._objection():
            if time.monotonic() > deadline:
                raise Violation(f"{objection}, {BOUND} s after the recovery\n{self.story()}")
        self.model.settled_at = self.model.number

    def _all_well(self) -> bool:
        """Look all the while: the first read that Redis answers is the one that a late drain would betray.

        At what was replaced last, by whoever replaced it.
        """
        replaced = self.model.replaced_by
        latest = [
            max(KEYS, key=lambda key, who=who: replaced[who, key]) for who in range(len(self.processes))
        ]
        for who in sorted(range(len(self.processes)), key=lambda who: -replaced[who, latest[who]]):
            self.look(who, latest[who])
        return all(process.is_well() for process in self.processes)

    def _objection(self) -> str:
        for who, process in enumerate(self.processes):
            for key, value in process.get_many(KEYS).items():
                if objection := self.model.objection(key, value, self.model.replaced[key]):
                    return f"process {who}: {objection}"
        return ""

    def replace_process(self, who: int) -> None:
        """``kill -9``, and a new one in its place, which has taken nothing away itself."""
        self.processes[who].kill()
        self.processes[who] = self._start(who)
        for key in KEYS:
            self.model.replaced_by[who, key] = 0

    def fork_process(self, who: int) -> None:
        """The child goes on in its parent's place, and the parent dies."""
        parent = self.processes[who]
        self.processes[who] = parent.fork()
        parent.kill()

    def _start(self, who: int) -> SiteProcess:
        return self.site.process(face=self.faces[who])

    # The story

    def _note(self, line: str) -> None:
        self.history.append(f"{self.model.number} {line}")

    def story(self) -> str:
        return "\n".join(self.history[-60:])


def _set(driver: Driver, who: int, key: str) -> None:
    driver.do(who, "set", key, driver.model.changes(who, key) * ROOM)


def _set_many(driver: Driver, who: int, key: str) -> None:
    other = driver.random.choice(KEYS)
    number = driver.model.changes(who, key, other)
    driver.do(who, "set_many", dict.fromkeys([key, other], number * ROOM))


def _add(driver: Driver, who: int, key: str) -> None:
    driver.do(who, "add", key, driver.model.next() * ROOM)


def _incr(driver: Driver, who: int, key: str) -> None:
    driver.model.counts(key)
    driver.do(who, "incr", key)


def _delete(driver: Driver, who: int, key: str) -> None:
    driver.model.changes(who, key)
    driver.do(who, "delete", key)


def _delete_many(driver: Driver, who: int, key: str) -> None:
    keys = [key, driver.random.choice(KEYS)]
    driver.model.changes(who, *keys)
    driver.do(who, "delete_many", keys)


def _touch(driver: Driver, who: int, key: str) -> None:
    driver.do(who, "touch", key, 1000)


def _touch_away(driver: Driver, who: int, key: str) -> None:
    driver.model.changes(who, key)
    driver.do(who, "touch", key, -1)


def _clear(driver: Driver, who: int, _key: str) -> None:
    driver.model.changes(who, *KEYS)
    driver.do(who, "clear")


def _delete_pattern(driver: Driver, who: int, key: str) -> None:
    driver.model.changes(who, key)
    driver.do(who, "delete_pattern", f"{key}*")


def _get_many(driver: Driver, who: int, _key: str) -> None:
    for key, value in driver.do(who, "get_many", list(KEYS)).items():
        driver.check(who, key, value, driver.model.replaced_by[who, key])


OPERATIONS: dict[str, Callable[[Driver, int, str], None]] = {
    "get": Driver.look,
    "get_many": _get_many,
    "set": _set,
    "set_many": _set_many,
    "add": _add,
    "incr": _incr,
    "delete": _delete,
    "delete_many": _delete_many,
    "touch": _touch,
    "touch away": _touch_away,
    "clear": _clear,
    "delete_pattern": _delete_pattern,
}
WEIGHTED = (
    *["get"] * 10, *["set"] * 6, *["delete"] * 4, *["incr"] * 3, *["get_many"] * 3, *["add"] * 2,
    "set_many", "delete_many", "touch", "touch away", "clear", "delete_pattern",
)  # fmt: skip


Act = Callable[[Driver], Any]


def _during(spoil: Callable[[TcpProxy], Any]) -> Act:
    """One operation while the network misbehaves."""

    def act(driver: Driver) -> None:
        spoil(driver.outage.proxy)
        driver._operate()
        if driver.fault not in ("refuse", "drop"):
            driver.outage.proxy.heal()

    return act


def _pause(driver: Driver) -> None:
    kind = driver.random.choice(["ALL", "WRITE"])
    if not driver.fault:
        driver.outage.server.command("CLIENT", "PAUSE", 90, kind)


LASTING: dict[str, tuple[Act, Act]] = {
    "freeze": (lambda driver: driver.outage.server.freeze(), lambda driver: driver.outage.server.thaw()),
    "kill": (lambda driver: driver.outage.server.kill(), lambda driver: driver.outage.server.start()),
    "refuse": (lambda driver: driver.outage.proxy.refuse(), lambda driver: driver.outage.proxy.heal()),
    "drop": (lambda driver: driver.outage.proxy.drop(), lambda driver: driver.outage.proxy.heal()),
    "out of memory": (
        lambda driver: driver.outage.server.config_set("maxmemory", 1),
        lambda driver: driver.outage.server.config_set("maxmemory", 0),
    ),
    "writes paused": (
        lambda driver: driver.outage.server.command("CLIENT", "PAUSE", 10**9, "WRITE"),
        lambda driver: driver.outage.server.command("CLIENT", "UNPAUSE"),
    ),
}
MOMENTARY: dict[str, Act] = {
    "one timeout": _during(lambda proxy: proxy.drop()),
    "a lost reply": _during(lambda proxy: proxy.lose_replies(1)),
    "half a reply": _during(lambda proxy: proxy.half_reply(1)),
    "a pause": _pause,
    "a reset": lambda driver: driver.outage.proxy.reset(),
    "a killed process": lambda driver: driver.replace_process(driver.random.randrange(len(driver.processes))),
    "a fork": lambda driver: driver.fork_process(driver.random.randrange(len(driver.processes))),
}
