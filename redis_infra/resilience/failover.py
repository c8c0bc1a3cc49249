"""Failover: the one place that decides what happens when Redis fails a call.

Knows nothing of Redis or Django. It is handed two callables with one return
type, what the loss of the call would mean (:class:`Effect`), and a translator
of exceptions; it asks the breakers and the journal, and returns one answer.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from redis_infra.clock import SYSTEM_CLOCK, Clock
from redis_infra.exceptions import StoreUnavailable
from redis_infra.instrumentation import Counters
from redis_infra.resilience.breaker import CircuitBreaker, State
from redis_infra.resilience.faults import Failure, Fault
from redis_infra.resilience.journal import Journal
from redis_infra.resilience.prober import Prober

__all__ = ["READ", "Effect", "Failover", "Home", "ImpatientEffect", "Kind", "LocalStore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")


class Kind(enum.Enum):
    """What a lost call leaves behind in Redis."""

    READ = "read"
    CHANGE = "change"
    """set, delete, touch: Redis may hold what must not be served; the journal takes the names."""
    FILL = "fill"
    """add, get_or_set: no harm if it is lost, so nothing is unlinked on return."""
    COUNT = "count"
    """incr: replayed as its delta if it was certainly not executed."""


class Home(Protocol):
    """Where keys belong: an alias with its prefix."""

    @property
    def namespace(self) -> str: ...


class Effect:
    """What one call touches, so that its loss can be put right.

    ``stores`` marks calls that need memory on the server; ``repeatable`` those
    that may be sent twice; ``relative`` those whose outcome depends on what is
    there, so that they are not sent about keys that Redis is not trusted with,
    and leave nothing stale when they are refused. ``home`` knows the glob of all keys of the alias,
    and is asked for it only when something is lost.
    """

    __slots__ = ("delta", "home", "kind", "names", "pattern", "relative", "repeatable", "stores")

    votes = True
    """Whether its timeouts count against the server."""

    def __init__(
        self,
        kind: Kind,
        names: tuple[str, ...] = (),
        home: Home | None = None,
        *,
        pattern: str | None = None,
        delta: int = 0,
        stores: bool = False,
        repeatable: bool = True,
        relative: bool = False,
    ) -> None:
        self.kind = kind
        self.names = names
        self.home = home
        self.pattern = pattern
        self.delta = delta
        self.stores = stores
        self.repeatable = repeatable
        self.relative = relative

    @property
    def leaves_stale(self) -> bool:
        """Whether a refusal leaves in Redis what must not be served; if not, nothing is drained or replayed.

        A pattern that may not be scanned for cannot be drained either: all would be answered from
        memory, for ever.
        """
        return not (self.relative or self.kind is Kind.COUNT or self.pattern is not None)

    @property
    def namespace(self) -> str:
        """The glob of all keys of the alias; empty if nobody said."""
        return self.home.namespace if self.home is not None else ""


class ImpatientEffect(Effect):
    """Of calls that wait for less time than others: their timeouts say nothing of the server."""

    __slots__ = ()
    votes = False


READ = Effect(Kind.READ)


class _Verdict(enum.Enum):
    RAISE = "raise"
    REPEAT = "repeat"
    ANSWER = "answer"
    """Let the fallback answer."""


class _Route(enum.Enum):
    ASK = "ask"
    LOCAL = "local"
    BOTH = "both"
    """Redis is well but not trusted with this key yet: write there too, answer from here."""
    ALSO = "also"
    """Redis answers; what may have been filled in here while it refuses stores is changed too."""
    ELSE = "else"
    """Redis answers if it has the counter; it may have been filled in here while it refuses stores."""


_ROUTE_WHILE_FILLING = {Kind.CHANGE: _Route.ALSO, Kind.COUNT: _Route.ELSE}
"""Of a key that Redis is trusted with, but that may have been filled in here while it refuses stores."""


class LocalStore(Protocol):
    """What failover needs of the store that answers instead."""

    def delete(self, *names: str) -> int: ...
    def delete_where(self, matches: Callable[[str], object]) -> int: ...
    def clear(self) -> object: ...
    def after_fork(self) -> None: ...


class Failover:
    """Decide, for one database of a server, who answers a call.

    For a key in the journal the fallback answers, in every state; for any other
    key Redis does while its circuits are closed. ``clear`` is true when nothing
    at all is wrong; it is a plain attribute, so that the hot path costs one
    attribute read and one look at the clock.

    Thread-safe, and shared by event loops: :meth:`run` and :meth:`arun` differ
    by ``await`` only. The journal may write a line to the state directory.
    """

    def __init__(
        self,
        *,
        reach: CircuitBreaker,
        access: CircuitBreaker,
        writes: CircuitBreaker,
        journal: Journal,
        local: LocalStore,
        prober: Prober,
        classify: Callable[[BaseException], Failure | None],
        renew: Callable[[], None],
        watch: Callable[[float], None],
        counters: Counters,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.reach = reach
        self.access = access
        self.writes = writes
        self.journal = journal
        self.local = local
        self.prober = prober
        self.counters = counters
        self.clear = False
        self.look_at = 0.0
        """Monotonic seconds of the next look at the host's journals."""
        self.recent_deletes: tuple[str, ...] = ()
        """Names deleted in the last seconds before the circuit opened."""
        self._classify = classify
        self._renew = renew
        self._watch = watch
        self._monotonic = clock.monotonic
        self._denied: set[str] = set()
        self._may_not_store = False
        self._answered_here: set[str] = set()
        """Names of adds and counters that timed out since Redis last answered: a yes, or a number, was given
        out already, so the timeout that opens the circuit must not take them away. As many as timeouts."""
        self._served_before = self._drained_before = 0
        journal.readers.append(self)
        for breaker in (reach, access, writes):
            breaker.listeners.append(self._changed)
            breaker.before_open.append(self.forget_local)
        self.settle()

    # What a call becomes

    def run(
        self,
        primary: Callable[P, T],
        fallback: Callable[P, T],
        effect: Effect = READ,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return ``primary(...)``, or ``fallback(...)`` if Redis cannot or must not answer.

        Waits at most as long as ``primary`` does, twice where a pooled
        connection had gone stale. Raises what the two raise, when that is the
        caller's own doing (a wrong type, an unpicklable value, a cancellation).
        """
        route = _Route.ASK if self.clear and self._monotonic() < self.look_at else self._route(effect)
        if route is _Route.LOCAL:
            self._lost(effect, executed=False)
        else:
            epoch = self.reach.epoch
            for again in (False, True):
                try:
                    answer = primary(*args, **kwargs)
                except BaseException as error:
                    verdict = self._judge(error, effect, epoch, again=again)
                    if verdict is _Verdict.RAISE:
                        raise
                    if verdict is _Verdict.ANSWER:
                        break
                else:
                    if self.reach.strikes or self.writes.strikes:
                        self._answered(effect)
                    if route is _Route.ASK or (route is _Route.ELSE and answer is not None):
                        return answer
                    return self._with_memory(route, answer, partial(fallback, *args, **kwargs))
        self.counters.fallback_ops += 1
        return fallback(*args, **kwargs)

    async def arun(
        self,
        primary: Callable[P, Awaitable[T]],
        fallback: Callable[P, T],
        effect: Effect = READ,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """:meth:`run` for a coroutine function; ``fallback`` does not wait."""
        route = (
            _Route.ASK
            if self.clear and self._monotonic() < self.look_at
            else self._route(effect, may_wait=False)
        )
        if route is _Route.LOCAL:
            self._lost(effect, executed=False)
        else:
            epoch = self.reach.epoch
            for again in (False, True):
                try:
                    answer = await primary(*args, **kwargs)
                except BaseException as error:
                    verdict = self._judge(error, effect, epoch, again=again)
                    if verdict is _Verdict.RAISE:
                        raise
                    if verdict is _Verdict.ANSWER:
                        break
                else:
                    if self.reach.strikes or self.writes.strikes:
                        self._answered(effect)
                    if route is _Route.ASK or (route is _Route.ELSE and answer is not None):
                        return answer
                    return self._with_memory(route, answer, partial(fallback, *args, **kwargs))
        self.counters.fallback_ops += 1
        return fallback(*args, **kwargs)

    def read(self, call: Callable[[bytes], T], packed: bytes, local: Callable[[str], T], name: str) -> T:
        """:meth:`run` for a read of one key, the hottest call of all.

        Nothing is built for the case that something is wrong until it is: no
        closures and no :class:`Effect` (1.5 of 20 microseconds).
        """
        if self.clear and self._monotonic() < self.look_at:
            epoch = self.reach.epoch
            try:
                reply = call(packed)
            except BaseException as error:
                verdict = self._judge(error, Effect(Kind.READ, (name,)), epoch, again=False)
                if verdict is _Verdict.RAISE:
                    raise
                if verdict is _Verdict.ANSWER:
                    self.counters.fallback_ops += 1
                    return local(name)
            else:
                if self.reach.strikes:
                    self._answered(READ)
                return reply
        return self.run(partial(call, packed), partial(local, name), Effect(Kind.READ, (name,)))

    async def aread(
        self, call: Callable[[bytes], Awaitable[T]], packed: bytes, local: Callable[[str], T], name: str
    ) -> T:
        """:meth:`read` for a coroutine function."""
        if self.clear and self._monotonic() < self.look_at:
            epoch = self.reach.epoch
            try:
                reply = await call(packed)
            except BaseException as error:
                verdict = self._judge(error, Effect(Kind.READ, (name,)), epoch, again=False)
                if verdict is _Verdict.RAISE:
                    raise
                if verdict is _Verdict.ANSWER:
                    self.counters.fallback_ops += 1
                    return local(name)
            else:
                if self.reach.strikes:
                    self._answered(READ)
                return reply
        return await self.arun(partial(call, packed), partial(local, name), Effect(Kind.READ, (name,)))

    def attempt(self, call: Callable[[bytes], T], packed: bytes, effect: Effect) -> T | None:
        """:meth:`run` for who has an answer of his own: None where Redis cannot or must not give one."""
        if self.clear and self._monotonic() < self.look_at:
            epoch = self.reach.epoch
            try:
                reply = call(packed)
            except BaseException as error:
                verdict = self._judge(error, effect, epoch, again=False)
                if verdict is _Verdict.RAISE:
                    raise
                if verdict is _Verdict.ANSWER:
                    self.counters.fallback_ops += 1
                    return None
            else:
                if self.reach.strikes or self.writes.strikes:
                    self._answered(effect)
                return reply
        answer: T | None = self.run(call, _nothing, effect, packed)
        return answer

    async def aattempt(
        self, call: Callable[[bytes], Awaitable[T]], packed: bytes, effect: Effect
    ) -> T | None:
        """:meth:`attempt` for a coroutine function."""
        if self.clear and self._monotonic() < self.look_at:
            epoch = self.reach.epoch
            try:
                reply = await call(packed)
            except BaseException as error:
                verdict = self._judge(error, effect, epoch, again=False)
                if verdict is _Verdict.RAISE:
                    raise
                if verdict is _Verdict.ANSWER:
                    self.counters.fallback_ops += 1
                    return None
            else:
                if self.reach.strikes or self.writes.strikes:
                    self._answered(effect)
                return reply
        return await self.arun(call, _nothing, effect, packed)

    def _with_memory(self, route: _Route, answer: T, fallback: Callable[[], T]) -> T:
        """What memory has to say where Redis has answered."""
        try:
            here = fallback()
        except StoreUnavailable:  # it keeps nothing (``ON_OUTAGE = "raise"``), so there is nothing to change
            if route is _Route.BOTH:
                raise
            return answer
        return (answer or here) if route is _Route.ALSO else here

    # Before the call

    def _route(self, effect: Effect, *, may_wait: bool = True) -> _Route:
        now = self._monotonic()
        if now >= self.look_at:
            self.look_at = now + 1.0
            self._watch(now)
        if self.clear:
            return _Route.ASK
        self.prober.look_after(now, may_wait=may_wait)
        if not (self.reach.closed and self.access.closed):
            return _Route.LOCAL
        if not self.writes.closed and (effect.stores or (self.writes.hangs and effect.kind is not Kind.READ)):
            return _Route.LOCAL
        return self._route_of_journalled(effect)

    def _route_of_journalled(self, effect: Effect) -> _Route:
        if effect.pattern is not None:
            return _Route.ASK
        if not self.untrusted(effect.names):
            return _ROUTE_WHILE_FILLING.get(effect.kind, _Route.ASK) if self.fills_locally else _Route.ASK
        return _Route.BOTH if effect.kind is Kind.CHANGE and not effect.relative else _Route.LOCAL

    @property
    def fills_locally(self) -> bool:
        """Whether stores are refused while reads go on, so that what is filled in can only be found here."""
        return not self.writes.closed or self._may_not_store

    def untrusted(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``names`` for which the fallback answers although Redis is well."""
        if self.journal.empty:
            return ()
        return tuple(name for name in names if self.journal.covers(name))

    # After the call

    def _judge(self, error: BaseException, effect: Effect, epoch: int, *, again: bool) -> _Verdict:
        """Take note of a failed call and say what its caller gets."""
        failure = self._classify(error)
        if failure is None:
            return _Verdict.RAISE
        self.counters.failures += 1
        if not again and self._may_repeat(failure, effect):
            self.counters.retries += 1
            self._renew()
            return _Verdict.REPEAT
        self._react(failure, effect, epoch)
        if failure.fault is not Fault.DENIED or effect.leaves_stale:
            self._lost(effect, executed=failure.executed, asked=True)
        if failure.fault is Fault.TIMEOUT and effect.kind in (Kind.FILL, Kind.COUNT):
            self._answered_here.update(effect.names)
        return _Verdict.RAISE if failure.fault is Fault.INTERRUPTED else _Verdict.ANSWER

    def _may_repeat(self, failure: Failure, effect: Effect) -> bool:
        """One more try, at once and on a fresh connection, never of what may have counted already."""
        return failure.on_fresh_connection and (effect.repeatable or failure.executed is False)

    def _answered(self, effect: Effect) -> None:
        """Redis answered after a timeout: only those in a row count, and a read says nothing of writes."""
        self.reach.record_success()
        self._answered_here.clear()
        if effect.kind is not Kind.READ:
            self.writes.record_success()

    def _react(self, failure: Failure, effect: Effect, epoch: int) -> None:
        match failure.fault:
            case Fault.TIMEOUT:
                if effect.votes:
                    self._timed_out(failure, effect, epoch)
            case Fault.UNREACHABLE | Fault.READONLY:
                self.reach.trip(failure.cause, epoch)
            case Fault.WRITES_STOPPED:
                self.writes.trip(failure.cause)
            case Fault.MISCONFIGURED:
                self.access.trip(failure.cause)
            case Fault.DENIED if failure.cause not in self._denied:
                self._denied.add(failure.cause)
                # Nothing is filled in here for a read that is denied, nor for a raw client's command.
                self._may_not_store = self._may_not_store or effect.kind is not Kind.READ
                self.settle()
                logger.error("redis_infra.command_denied cause=%s", failure.cause)

    def _timed_out(self, failure: Failure, effect: Effect, epoch: int) -> None:
        """Count it against the server, and against its writes: it may still answer reads between them.

        That is what CLIENT PAUSE WRITE does, in every failover that was asked for; each write would wait.
        """
        if self.reach.record_timeout(failure.cause, epoch) or epoch != self.reach.epoch:
            return
        if effect.kind is not Kind.READ:
            self.writes.record_timeout(failure.cause, self.writes.epoch)

    def _lost(self, effect: Effect, *, executed: bool | None, asked: bool = False) -> None:
        """Write down what Redis did not get; before the caller learns of it."""
        is_trusted = self.reach.closed and self.access.closed and not self.fills_locally
        if asked and is_trusted and effect.kind is not Kind.FILL:
            # Nothing was served from here while Redis was trusted: what lies here
            # is of another time (a fill that failed once, say).
            self.local.delete(*[name for name in effect.names if not self._belongs_here(name)])
        if effect.kind is Kind.CHANGE:
            self._note(effect)
        elif effect.kind is Kind.COUNT and executed is False:
            with self.journal.gate:
                self._distrusted()
                self.journal.add_delta(effect.names[0], effect.delta, effect.namespace)
        else:
            return
        if self.reach.closed and (self.writes.closed or not self.prober.alive):
            # Nobody else will come: the circuit is closed, so no probe is due.
            self.prober.wake()

    def _note(self, effect: Effect) -> None:
        with self.journal.gate:
            # `clear` first: a reader that still sees it true began before this write failed.
            self._distrusted()
            if effect.pattern is not None:
                self.journal.add_pattern(effect.pattern, effect.namespace)
            else:
                self.journal.add(effect.names, effect.namespace)

    # States

    def _changed(self, breaker: CircuitBreaker) -> None:
        """A circuit opened or closed: keep ``clear`` true to it."""
        if breaker.opened_just_now:
            with self.journal.gate:
                self.clear = False
            self._served_before = self.counters.fallback_ops
            self._drained_before = self.counters.drained
            if breaker is self.reach:
                self.writes.record_success()  # its timeouts were the server's
            if breaker is not self.writes:
                self.recent_deletes = tuple(self.journal.recent_deletes(self._monotonic()))
            self.prober.wake()
        elif breaker.state is State.CLOSED:
            self.settle()

    def forget_local(self) -> None:
        """Drop what memory holds of another time: of before an outage, or of one that is over.

        What came while it ended is in the journal, and is answered from here until the next drain.
        """
        self.local.delete_where(lambda name: not self._belongs_here(name))
        self._answered_here.clear()

    @contextmanager
    def keeping(self, name: str) -> Iterator[None]:
        """Let a key stay here for a block in which no journal names it: its delta is on its way."""
        self._answered_here.add(name)
        try:
            yield
        finally:
            self._answered_here.discard(name)

    def _belongs_here(self, name: str) -> bool:
        """Whether Redis is not trusted with a key, or it was answered from here since Redis last answered."""
        return name in self._answered_here or self.journal.covers(name)

    def settle(self) -> bool:
        """Work out ``clear`` anew; under the lock under which the journal grows."""
        with self.journal.gate:
            self.clear = (
                self.reach.closed and self.access.closed and self.journal.empty and not self.fills_locally
            )
            return self.clear

    def distrust(self) -> None:
        """The journal has taken in what another process left: no shortcut until it is drained."""
        with self.journal.gate:
            self._distrusted()
        self.prober.wake()

    def _distrusted(self) -> None:
        """No shortcut for anybody who reads this data: another user's alias may have the same keys."""
        for reader in self.journal.readers:
            reader.clear = False

    @property
    def served_locally(self) -> int:
        """Operations answered without Redis since the circuit opened."""
        return self.counters.fallback_ops - self._served_before

    @property
    def drained(self) -> int:
        """Keys unlinked since the circuit opened."""
        return self.counters.drained - self._drained_before

    def after_fork(self) -> None:
        """In a forked child: the next operation looks at the host's journals."""
        self.look_at = 0.0


def _nothing(_packed: bytes) -> Any:
    return None
