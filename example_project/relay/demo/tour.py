"""The tour of the site that ``demo --check`` makes, and everybody can make by hand.

Over real HTTP against the running server: read, write, use the query cache, run into
the limits, choose settings and use API keys, take Redis away in two ways, do it all again, give it back, and
look for anything that is stale, made up or lost, and for anybody with a fresh budget. Every step prints a
line; the first claim that does not hold ends the tour.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from example_project.relay.demo import Backing
from example_project.relay.demo.limits_tour import LimitsTour
from example_project.relay.demo.queries_tour import QueriesTour
from example_project.relay.demo.records_tour import RecordsTour
from example_project.relay.demo.visitor import Answer, Visitor
from example_project.relay.seed import DEMO_USER

Say = Callable[[str], None]

ROOM = "/rooms/engineering/"
STATE = "/playground/state.json"
PAGES = [
    "/",
    ROOM,
    "/rooms/general/",
    "/documents/",
    "/documents/?q=runbook",
    "/documents/2/",
    f"/people/{DEMO_USER}/",
    "/playground/",
    "/queries/",
    "/api/rooms/",
    "/api/rooms/engineering/messages/",
    "/api/documents/",
    "/api/stats/",
]

OUTAGE = 1_650.0
"""Milliseconds that an outage may add to a page: three times what it may cost a process in all."""
RECOVERY = 15.0
"""Seconds in which Redis, given back, must be trusted again: three times the longest pause of the probes."""


class ClaimFailed(Exception):
    """The site did not do what it promises; the text says what."""


class Tour:
    """One tour. ``run`` returns whether everything held."""

    def __init__(self, url: str, backing: Backing, password: str, say: Say) -> None:
        self._visitor = Visitor(url)
        self._backing = backing
        self._password = password
        self._limits = LimitsTour(url, self._visitor, password, self._step, _claim)
        self._queries = QueriesTour(self._visitor, self._step, _claim)
        self._records = RecordsTour(url, self._visitor, backing, self._step, _claim)
        self._say = say
        self._said = 0
        self._usual = 0.0

    def run(self) -> bool:
        """Make the tour, one printed line a step."""
        errors = _ErrorLog()
        try:
            with errors:
                self._tour()
            _claim(not errors.texts, f"errors were logged: {'; '.join(errors.texts[:3])}")
        except (ClaimFailed, OSError) as error:
            self._say(f"FAILED             {error}")
            return False
        return True

    def _tour(self) -> None:
        self._reading()
        self._writing()
        self._queries.use_it()
        self._limits.run_into_them()
        self._records.use_it()
        if self._backing.power == "none":
            self._step("skipped: killing and freezing, there is no server", 0)
        else:
            self._outage("killed", self._backing.stop, thorough=True)
            self._outage("frozen", self._backing.freeze)
        live = self._live()
        _claim(
            live["board"]["stale"] == 0,
            f"the cache was behind the database {live['board']['stale']} times",
        )
        self._step(f"nothing stale in {live['board']['compared']} comparisons of cache and database", 0)

    def _reading(self) -> None:
        first, again = self._pages("pages read")[0], self._pages("pages read again")[0]
        _claim(not again.sources.get("database"), f"{first.path} was computed twice: {dict(again.sources)}")
        self._usual = max(answer.ms for answer in self._pages("pages read once more"))

    def _writing(self) -> None:
        self._visitor.get("/login/")
        signed_in = self._visitor.post("/login/", username=DEMO_USER, password=self._password)
        _claim(signed_in.status == 302, f"signing in answered {signed_in.status}")
        self._step("signed in", signed_in.ms)
        self._say_something("while all is well")
        self._edit("write")
        self._expect_board("read back")

    def _outage(self, how: str, begin: Callable[[], None], *, thorough: bool = False) -> None:
        """Take Redis away, use the site, give it back, and look for what is stale.

        ``thorough``: and use the query cache in every way, meanwhile and afterwards.
        """
        self._edit("write")
        self._expect_board("its copy is in the cache")
        self._queries.keep_everything()
        self._limits.spend_half()
        self._timed(f"Redis {how}", begin)
        slowest = max(answer.ms for answer in self._pages("pages read without Redis"))
        # What a page takes anyway is the machine's affair; on a busy one it varies.
        _claim(
            slowest < 3 * self._usual + OUTAGE,
            f"a page took {slowest:.0f} ms, and {self._usual:.0f} before",
        )
        self._expect_degraded()
        self._edit("delete")
        self._expect_board("read during the outage")
        self._say_something(f"while Redis is {how}")
        self._pages("pages read without Redis again")
        self._limits.expect_the_rest({"chat": 1})
        self._records.expect_nothing_made_up()
        if thorough:
            self._queries.use_it()
        self._queries.outdate_everything()
        self._timed("Redis given back", self._backing.start)
        self._expect_recovery()
        self._limits.expect_nothing()
        self._records.expect_them_back()
        self._expect_board("read after the outage")
        self._queries.expect_fresh()
        if thorough:
            self._queries.use_it()
        self._expect_message(f"while Redis is {how}", "the message of the outage is there")
        self._expect_redis()

    def _pages(self, what: str) -> list[Answer]:
        answers = [self._visitor.get(path) for path in PAGES]
        for answer in answers:
            _claim(answer.status == 200, f"{answer.path} answered {answer.status}")
        slowest = max(answers, key=lambda answer: answer.ms)
        self._step(
            f"{len(answers)} {what}, all 200; slowest {slowest.ms:.0f} ms ({slowest.path}); "
            f"from {_sources(answers)}",
            sum(answer.ms for answer in answers),
        )
        return answers

    def _say_something(self, when: str) -> None:
        sent = self._visitor.post(ROOM, body=f"Said {when}.")
        _claim(sent.status == 302, f"posting a message answered {sent.status}")
        self._step(f"message posted {when}", sent.ms)
        self._expect_message(when, "it is on the room's page at once")

    def _expect_message(self, when: str, text: str) -> None:
        room = self._visitor.get(ROOM)
        _claim(f"Said {when}." in room.text, f"the message posted {when} is not on {ROOM}")
        self._step(f"{text}; from {_sources([room])}", room.ms)

    def _edit(self, action: str) -> None:
        edited = self._visitor.post("/playground/board/", action=action)
        _claim(edited.status == 302, f"editing the notice board answered {edited.status}")
        done = "its copy in the cache written" if action == "write" else "its copy in the cache deleted"
        self._step(f"notice board edited, {done}", edited.ms)

    def _expect_board(self, text: str) -> None:
        started = time.perf_counter()
        board = self._live()["board"]
        _claim(
            board["cached"] == board["database"],
            f"the cache shows revision {board['cached']} of the notice board, "
            f"the database has {board['database']}",
        )
        self._step(
            f"notice board, {text}: revision {board['cached']} from {board['source']}", _since(started)
        )

    def _expect_degraded(self) -> None:
        live = self._live()
        _claim(live["state"] in {"open", "half_open"}, f"the state is {live['state']} without Redis")
        _claim(bool(live["cause"]), "the state names no cause")
        self._step(f"degraded, as it should be: {live['cause']}", 0)

    def _expect_recovery(self) -> None:
        started = time.perf_counter()
        while (live := self._live())["state"] != "closed" or live["pending"]:
            _claim(
                _since(started) < RECOVERY * 1000,
                f"{live['state']} with {live['pending']} keys waiting {RECOVERY:.0f} s after Redis came back",
            )
            time.sleep(0.02)
        self._step("recovered, no key waits to be deleted", _since(started))

    def _expect_redis(self) -> None:
        self._visitor.get("/")
        home = self._visitor.get("/")
        _claim(
            home.sources.keys() == {"redis"}, f"the home page came from {dict(home.sources)} after the outage"
        )
        self._step("the home page comes from Redis alone", home.ms)

    def _live(self) -> dict[str, Any]:
        answer = self._visitor.get(STATE)
        _claim(answer.status == 200, f"{STATE} answered {answer.status}")
        live: dict[str, Any] = answer.json()
        return live

    def _timed(self, text: str, act: Callable[[], None]) -> None:
        started = time.perf_counter()
        act()
        self._step(text, _since(started))

    def _step(self, text: str, ms: float) -> None:
        self._said += 1
        took = f"{ms:7.1f} ms" if ms else " " * 10
        self._say(f"{self._said:3} ok {took}  {text}")


class _ErrorLog(logging.Handler):
    """Keeps what is logged as an error while the block lasts, wherever in the process."""

    NAMES = ("", "django", "django.server", "redis_infra")

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def __enter__(self) -> None:
        for name in self.NAMES:
            logging.getLogger(name).addHandler(self)

    def __exit__(self, *exc_info: object) -> None:
        for name in self.NAMES:
            logging.getLogger(name).removeHandler(self)


def _claim(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ClaimFailed(otherwise)


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


def _sources(answers: Iterable[Answer]) -> str:
    counts: dict[str, int] = {}
    for answer in answers:
        for source, count in answer.sources.items():
            counts[source] = counts.get(source, 0) + count
    return ", ".join(f"{source} {count}" for source, count in sorted(counts.items())) or "nothing cached"
