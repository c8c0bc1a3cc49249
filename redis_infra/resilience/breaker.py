"""Circuit breaker: stop asking a server that does not answer.

Knows nothing of Redis or Django. One breaker guards one thing that can fail as
a whole: whether a server can be reached, whether this user may enter, whether
it takes writes. Who probes, and what recovery means, is decided elsewhere.
"""

from __future__ import annotations

import enum
import random
import threading
from collections.abc import Callable

from redis_infra.clock import SYSTEM_CLOCK, Clock
from redis_infra.instrumentation import Transition, notify

__all__ = ["CircuitBreaker", "State"]

FLAP_WINDOW = 30.0
"""Seconds after an opening in which another one keeps the backoff it had reached."""


class State(enum.Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    RECOVERING = "recovering"


class CircuitBreaker:
    """Let calls pass until the thing behind it fails, then refuse until a probe brings it back.

    ``timeouts`` timeouts in a row open it, anything harder opens it at once.
    Probes are due after ``probe_base`` seconds, doubling up to ``probe_cap``,
    each with 50 to 100 % jitter. Exactly one prober gets through.

    ``closed`` is a plain attribute so that the hot path reads it without a call;
    it is true in state CLOSED only. Thread-safe; safe to share between event
    loops: no method waits. A forked child inherits the state and decides alone
    (call :meth:`after_fork` there).
    """

    def __init__(
        self,
        server: str,
        circuit: str = "reach",
        *,
        timeouts: int = 2,
        probe_base: float = 0.25,
        probe_cap: float = 5.0,
        clock: Clock = SYSTEM_CLOCK,
        on_change: Callable[[CircuitBreaker], None] | None = None,
    ) -> None:
        self.server = server
        self.circuit = circuit
        self.timeouts = timeouts
        self.probe_base = probe_base
        self.probe_cap = probe_cap
        self.clock = clock
        self.listeners: list[Callable[[CircuitBreaker], None]] = [on_change] if on_change else []
        self.before_open: list[Callable[[], object]] = []
        """Called under the lock, before anybody can see that it is open: what must not be seen, goes."""
        self.state = State.CLOSED
        self.closed = True
        self.strikes = 0
        self.epoch = 0
        """Grows at each opening and closing, so that stragglers of the time before do not count."""
        self.cause = ""
        self.hangs = False
        """Whether it is open because nobody answered, rather than because somebody said no."""
        self.opened_at: float | None = None
        """Monotonic seconds; None while closed."""
        self.opened_at_wall: float | None = None
        self.next_probe_at = 0.0
        self.held = False
        self.opened_just_now = False
        """Whether the change that listeners are told of is an opening, not a failed probe."""
        self._failed_probes = 0
        self._last_opened_at: float | None = None
        self._lock = threading.RLock()

    def record_success(self) -> None:
        """Forget the timeouts so far: only consecutive ones count."""
        self.strikes = 0

    def record_timeout(self, cause: str, epoch: int) -> bool:
        """Count one timeout; return whether it opened the circuit.

        ``epoch`` is the one read before the call: a straggler that began before
        the last transition says nothing about the server of now.
        """
        with self._lock:
            if epoch != self.epoch or self.state is not State.CLOSED:
                return False
            self.strikes += 1
            if self.strikes < self.timeouts:
                return False
            self._open(cause, hangs=True)
        self._announce(State.CLOSED, State.OPEN)
        return True

    def trip(self, cause: str, epoch: int | None = None) -> bool:
        """Open at once; return whether this call did it."""
        with self._lock:
            if self.state is not State.CLOSED or (epoch is not None and epoch != self.epoch):
                return False
            self._open(cause)
        self._announce(State.CLOSED, State.OPEN)
        return True

    def probe_due(self) -> bool:
        return self.state is State.OPEN and not self.held and self.clock.monotonic() >= self.next_probe_at

    def begin_probe(self) -> bool:
        """Claim the one probe; everybody else is refused until it is decided."""
        return self._move(State.OPEN, State.HALF_OPEN) if not self.held else False

    def begin_recovery(self) -> bool:
        """The probe was answered; what Redis missed is being put right now."""
        return self._move(State.HALF_OPEN, State.RECOVERING)

    def probe_failed(self, cause: str) -> None:
        """Back to OPEN, and wait longer before the next probe."""
        with self._lock:
            before = self.state
            if before not in (State.HALF_OPEN, State.RECOVERING):
                return
            self._failed_probes += 1
            self.state = State.OPEN
            self.cause = cause
            self.next_probe_at = self.clock.monotonic() + self._backoff()
        self._announce(before, State.OPEN)

    def close(self, *, served_locally: int = 0, drained: int = 0) -> bool:
        """Trust the server again. The caller has drained what it missed."""
        with self._lock:
            before, opened_at = self.state, self.opened_at
            if before is State.CLOSED or self.held:
                return False
            self.state = State.CLOSED
            self.strikes = 0
            self.epoch += 1
            self.opened_at = self.opened_at_wall = None
            self.closed = True
        lasted = self.clock.monotonic() - opened_at if opened_at is not None else 0.0
        self._announce(before, State.CLOSED, lasted=lasted, served_locally=served_locally, drained=drained)
        return True

    def hold_open(self, cause: str) -> None:
        """Open and stay open until :meth:`release` (tests of a site's own degraded mode)."""
        self.held = True
        self.trip(cause)

    def release(self) -> None:
        """Let probes through again, the next one at once."""
        with self._lock:
            self.held = False
            self.next_probe_at = self.clock.monotonic()

    def hurry(self) -> None:
        """Make the next probe due now: there is reason to believe that it would be answered."""
        with self._lock:
            if self.state is State.OPEN:
                self.next_probe_at = self.clock.monotonic()

    def after_fork(self) -> None:
        """In a forked child: new lock, and a probe that the parent was making is nobody's here."""
        self._lock = threading.RLock()
        if self.state in (State.HALF_OPEN, State.RECOVERING):
            self.state = State.OPEN

    def _open(self, cause: str, *, hangs: bool = False) -> None:
        now = self.clock.monotonic()
        flapping = self._last_opened_at is not None and now - self._last_opened_at < FLAP_WINDOW
        self._failed_probes = self._failed_probes + 1 if flapping else 0
        self._last_opened_at = self.opened_at = now
        for prepare in self.before_open:
            prepare()
        self.opened_at_wall = self.clock.time()
        self.state = State.OPEN
        self.closed = False
        self.strikes = 0
        self.epoch += 1
        self.cause = cause
        self.hangs = hangs
        self.next_probe_at = now + self._backoff()

    def _backoff(self) -> float:
        # The exponent is bounded: 2.0 ** 1100 is an OverflowError after a week's outage.
        delay = min(self.probe_cap, self.probe_base * 2.0 ** min(self._failed_probes, 32))
        return delay * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret

    def _move(self, before: State, after: State) -> bool:
        with self._lock:
            if self.state is not before:
                return False
            self.state = after
        self._announce(before, after)
        return True

    def _announce(
        self, before: State, after: State, *, lasted: float = 0.0, served_locally: int = 0, drained: int = 0
    ) -> None:
        self.opened_just_now = before is State.CLOSED
        for listener in self.listeners:
            listener(self)
        notify(
            Transition(
                server=self.server,
                circuit=self.circuit,
                before=before.value,
                after=after.value,
                cause=self.cause,
                lasted=lasted,
                served_locally=served_locally,
                drained=drained,
            )
        )
