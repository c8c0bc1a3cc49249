"""The part of the tour that is about the query cache: with Redis, without it, and when it is back.

Each time the same is claimed: a query is computed once, a write forgets what shows it when it is committed
and not otherwise, patterns and tags forget what they name and say how many that was, a crowd computes once,
and who cannot be given something new is given something stale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from example_project.relay.bench import CROWD, WRITES
from example_project.relay.demo.visitor import Answer, Visitor
from example_project.relay.watched import ROOM

Step = Callable[[str, float], None]
Claim = Callable[[bool, str], None]

STATE = "/queries/state.json"
OF_THE_ROOM = {f"chat:{ROOM}:card", f"chat:{ROOM}:messages"}
"""What is kept of the room that the page watches."""
ANYTHING = "[a-z]*"
SLOWEST = 3_000.0
"""Milliseconds within which the last of the crowd is served: one slow computation, on a busy machine."""


@dataclass(slots=True)
class QueriesTour:
    """Uses the buttons of the Query cache page."""

    visitor: Visitor
    step: Step
    claim: Claim

    def use_it(self) -> None:
        """Make all the claims; the answers come from whoever can give them now."""
        kept_by = self._read_twice()
        self._write(kept_by)
        self._forget("pattern", f"chat:{ROOM}:*")
        self._forget("tag", f"room:{ROOM}")
        self._come_at_once()
        self._fail()

    def keep_everything(self) -> None:
        """Before an outage: let Redis keep what will be outdated when it returns."""
        answer = self._act("read:all")
        self.claim(not self._gone(), f"read, and not kept: {', '.join(self._gone())}")
        self.step("all watched queries are kept", answer.ms)

    def outdate_everything(self) -> None:
        """In an outage: write a row of every model, after which nothing that Redis keeps is right."""
        ms = sum(self._act(f"write:{what}").ms for what in WRITES)
        self.step(f"without Redis a {', '.join(WRITES)} saved", ms)

    def expect_fresh(self) -> None:
        """After an outage: what was written meanwhile is in what is read now."""
        ms = self._act("read:all").ms
        shown = self._said()
        self._act("forget:pattern", pattern=ANYTHING)
        self._act("read:all")
        computed = self._said()
        outdated = [name for name, said in shown.items() if said != computed[name]]
        self.claim(not outdated, f"after the outage these were stale: {', '.join(outdated)}")
        self.step(f"queries after the outage: none of {len(shown)} is stale", ms)

    def _read_twice(self) -> str:
        """Return who keeps what was read."""
        self._act("forget:pattern", pattern=f"chat:{ROOM}:*")
        computed = self._row("messages")["computations"]
        first, again = self._read("messages"), self._read("messages")
        kept_by = str(again["source"])
        self.claim(first["source"] == "database", f"a query that was not kept came from {first['source']}")
        self.claim(kept_by in {"redis", "fallback", "memory"}, f"a query read again came from {kept_by}")
        times = again["computations"] - computed
        self.claim(times == 1, f"a query that was read twice was computed {times} times")
        self.step(
            f"query read twice: computed in {first['ms']:.1f} ms, from {kept_by} in {again['ms']:.1f} ms", 0
        )
        return kept_by

    def _write(self, kept_by: str) -> None:
        self._act("read:all")
        rolled = self._act("write:message", roll_back="on")
        forgotten = self._forgotten()
        self.claim(not forgotten, f"a write that was rolled back made it forget {forgotten}")
        again = self._read("messages")
        self.claim(again["source"] == kept_by, f"after a rollback it came from {again['source']}")
        self.step("message saved and rolled back: nothing forgotten", rolled.ms)
        wrote = self._act("write:message")
        forgotten = self._forgotten()
        self.claim(
            set(forgotten) >= OF_THE_ROOM | {"stats"}, f"a write that was committed forgot {forgotten}"
        )
        now = self._read("messages")
        self.claim(now["source"] == "database", f"after a write it came from {now['source']}")
        self.claim(now["said"] != again["said"], "what was written is not in what was read after it")
        self.step(f"message saved: {len(forgotten)} forgotten, and it is in what is read next", wrote.ms)

    def _forget(self, how: str, what: str) -> None:
        self._act("forget:pattern", pattern=f"chat:{ROOM}:*")  # what pages have kept of it, too
        for name in ("room", "messages"):
            self._read(name)
        answer = self._act(f"forget:{how}", **{how: what})
        count = self._state()["happened"][0]["count"]
        self.claim(count == len(OF_THE_ROOM), f"{what} forgot {count}, not {len(OF_THE_ROOM)}")
        self.claim(set(self._forgotten()) == OF_THE_ROOM, f"{what} forgot {self._forgotten()}")
        self._act(f"forget:{how}", **{how: what})
        again = self._state()["happened"][0]["count"]
        self.claim(again == 0, f"{what} forgot {again} where there was nothing left")
        self.step(f"{how} {what}: {count} forgotten, then none", answer.ms)

    def _come_at_once(self) -> None:
        answer = self._act("crowd")
        crowd = self._state()["crowd"]
        self.claim(crowd["computations"] == 1, f"{CROWD} threads computed {crowd['computations']} times")
        self.claim(crowd["slowest"] < SLOWEST, f"the last of {CROWD} threads waited {crowd['slowest']} ms")
        self.step(f"{CROWD} threads at once: computed once, the slowest {crowd['slowest']:.0f} ms", answer.ms)

    def _fail(self) -> None:
        before = self._read("search")
        self._act("expire:search")
        answer = self._act("read:search", database_away="on")
        now = self._row("search")
        self.claim(now["source"] == "stale", f"with the database away, it came from {now['source']}")
        self.claim(now["said"] == before["said"], f"{now['said']!r} is not what was kept")
        self.step("expired, and the database away: stale is served", answer.ms)
        self._act("forget:tag", tag="documents")
        self._act("read:search", database_away="on")
        now = self._row("search")
        self.claim(now["source"] == "error", f"what was invalidated was served, from {now['source']}")
        self._act("read:search")
        self.step("invalidated, and the database away: nothing is served that was forgotten", 0)

    # What the page is asked

    def _act(self, action: str, **fields: str) -> Answer:
        answer = self.visitor.post("/queries/act/", action=action, **fields)
        self.claim(answer.status == 302, f"{action} answered {answer.status}: {answer.text[:200]}")
        return answer

    def _read(self, name: str) -> dict[str, Any]:
        self._act(f"read:{name}")
        return self._row(name)

    def _state(self) -> dict[str, Any]:
        answer = self.visitor.get(STATE)
        self.claim(answer.status == 200, f"{STATE} answered {answer.status}")
        state: dict[str, Any] = answer.json()
        return state

    def _row(self, name: str) -> dict[str, Any]:
        return next(row for row in self._state()["rows"] if row["name"] == name)

    def _said(self) -> dict[str, str]:
        return {row["name"]: row["said"] for row in self._state()["rows"]}

    def _forgotten(self) -> list[str]:
        forgotten: list[str] = self._state()["happened"][0]["forgotten"]
        return forgotten

    def _gone(self) -> list[str]:
        return [row["name"] for row in self._state()["rows"] if row["kept"] < row["keys"]]
