"""The part of the tour that runs into the limits: with Redis, without it, and when it is back.

Each endpoint lets exactly its limit through and answers 429 after it. An outage in the middle of a budget
changes who decides and nothing else, and its end gives nobody a fresh one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from example_project.relay.demo.visitor import Answer, Visitor
from example_project.relay.limits import STRANGER
from example_project.relay.seed import DEMO_USER

Step = Callable[[str, float], None]
Claim = Callable[[bool, str], None]

LIMITS = MappingProxyType({"search": 30, "chat": 20, "upload": 5, "auth": 5})
"""What each endpoint lets through: in a minute, and for logins in 15."""
WINDOW = 50.0
"""Seconds after which the first of a minute's requests may soon be forgotten, and nothing can be claimed."""
SIGN_INS = 6
"""More than a limit of five would let through if they were not given back."""
PATIENCE = 15.0
"""Seconds in which Redis, given back, must decide again: three times the longest pause of the probes."""


@dataclass(slots=True)
class LimitsTour:
    """Runs into the limits of one site.

    ``member`` has signed in; searching and guessing at passwords is for a stranger, so that what the rest of
    the tour does is charged to somebody else.
    """

    url: str
    member: Visitor
    password: str
    step: Step
    claim: Claim
    _began: float = 0.0

    def run_into_them(self) -> None:
        """Use up every budget while all is well."""
        self._begin_anew()
        for name, limit in LIMITS.items():
            self._exhaust(name, limit, {"redis", "process"})
        self._begin_anew()
        self._sign_in(SIGN_INS, "signed in {} times in a row, each given back")

    def spend_half(self) -> None:
        """Use up half of every budget, before an outage."""
        self._begin_anew()
        self._began = time.monotonic()
        ms = 0.0
        for name, limit in LIMITS.items():
            for answer in self._ask(name, limit // 2):
                self.claim(answer.status != 429, f"{name} turned away within its limit")
                ms += answer.ms
        self.step("half of every limit used", ms)

    def expect_the_rest(self, spent: Mapping[str, int]) -> None:
        """Use up what is left, without Redis; ``spent`` is what the tour itself has used meanwhile."""
        if self._is_too_late():
            return
        for name, limit in LIMITS.items():
            self._exhaust(name, limit - limit // 2 - spent.get(name, 0), {"host"})
        self._sign_in(1, "signed in without Redis, given back")

    def expect_nothing(self) -> None:
        """Be turned away everywhere, when Redis decides again."""
        started = time.monotonic()
        while (who := self.member.get("/limits/state.json").json()["who"]) != "redis":
            self.claim(
                time.monotonic() - started < PATIENCE, f"{who} decides {PATIENCE:.0f} s after Redis came back"
            )
            time.sleep(0.02)
        if self._is_too_late():
            return
        ms = 0.0
        for name in LIMITS:
            (answer,) = self._ask(name, 1)
            self.claim(answer.status == 429, f"{name} has a fresh budget after the outage: {answer.status}")
            ms += answer.ms
        self.step("Redis decides again, and nobody has a fresh budget", ms)

    def _exhaust(self, name: str, left: int, sources: set[str]) -> None:
        """Use up what is left of a limit, and be turned away once."""
        *passed, denied = answers = list(self._ask(name, left + 1))
        early = [answer.status for answer in passed if answer.status == 429]
        self.claim(not early, f"{name} let {len(passed) - len(early)} through of {left} that were left")
        self.claim(
            denied.status == 429, f"{name} let {left + 1} through where {left} were left: {denied.status}"
        )
        decided = {str(answer.decision.get("source")) for answer in passed}
        self.claim(decided <= sources, f"{name} was decided by {decided}, and not by {sources}")
        retry_after = denied.headers.get("Retry-After", "")
        self.claim(
            retry_after.isdecimal() and int(retry_after) > 0, f"{name}: Retry-After is {retry_after!r}"
        )
        shown = "RateLimit" in denied.headers
        self.claim(shown == (name != "auth"), f"{name}: RateLimit is {'there' if shown else 'missing'}")
        who = " and ".join(sorted(decided))
        self.step(
            f"{name}: {left} let through by {who}, then 429, again in {retry_after} s",
            sum(answer.ms for answer in answers),
        )

    def _ask(self, name: str, times: int) -> Iterable[Answer]:
        for _ in range(times):
            yield self._asked(name)

    def _asked(self, name: str) -> Answer:
        match name:
            case "chat":
                return self.member.post("/api/rooms/random/messages/", body="Hammered.")
            case "upload":
                return self.member.upload("/api/uploads/", "hammered.txt", "Hammered.")
            case "search":
                return self._stranger().get("/api/documents/?q=runbook")
        return self._stranger().post("/login/", username=STRANGER, password="guess")

    def _sign_in(self, times: int, text: str) -> None:
        ms = 0.0
        for _ in range(times):
            answer = self._stranger().post("/login/", username=DEMO_USER, password=self.password)
            self.claim(answer.status == 302, f"signing in answered {answer.status}")
            ms += answer.ms
        self.step(text.format(times), ms)

    def _stranger(self) -> Visitor:
        visitor = Visitor(self.url)
        visitor.get("/login/")
        return visitor

    def _begin_anew(self) -> None:
        stranger = self._stranger()
        for visitor, names in ((self.member, ("chat", "upload")), (stranger, ("search", "auth"))):
            for name in names:
                answer = visitor.post("/limits/reset/", policy=name)
                self.claim(answer.status == 302, f"beginning anew with {name} answered {answer.status}")

    def _is_too_late(self) -> bool:
        late = time.monotonic() - self._began > WINDOW
        if late:
            self.step(
                "skipped: a minute has nearly passed on this machine, and with it the limits' window", 0
            )
        return late
