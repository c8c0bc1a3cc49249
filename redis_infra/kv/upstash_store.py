"""The store behind Upstash's REST API: what is sent, how often, and what a failure means.

One HTTP client for the process and one for each event loop, with connections that are kept. Nothing that may
have been executed is sent twice, unless it says itself that this does no harm. What httpx proves: after
ConnectError, ConnectTimeout, ProxyError and PoolTimeout no byte of the request was sent; after anything else
the server may have got all of it. What the answers mean is said in :mod:`.rest`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

from redis_infra.clock import SYSTEM_CLOCK, Clock
from redis_infra.conf import BreakerPolicy, readers
from redis_infra.exceptions import (
    MissingExtra,
    SettingsError,
    StoreAuthError,
    StoreError,
    StoreQuotaExceeded,
    StoreRejected,
    StoreUnavailable,
)
from redis_infra.kv import rest
from redis_infra.kv.base import KVStore, read_reply
from redis_infra.kv.commands import Command
from redis_infra.resilience.breaker import CircuitBreaker

if TYPE_CHECKING:
    import ssl

    import httpx

__all__ = ["MAX_REPLY", "REST_BREAKER", "UpstashStore"]

T = TypeVar("T")

MAX_REPLY: Final = 64 * 2**20
"""Bytes that an answer may have: more than Upstash answers, and less than what takes a worker's memory."""
REST_BREAKER: Final = BreakerPolicy(timeouts=3, probe_base=0.5, probe_cap=10.0)
"""The way is longer than to a server next door: a lost answer, or two, are no outage."""
KEPT: Final = 20
"""Connections that are kept while nobody uses them."""
KEPT_FOR: Final = 20.0
"""Seconds that an idle connection is kept: less than what is in front of an API usually allows."""
MOST: Final = 50
"""Connections at once, of a process and of each event loop."""
SLOWEST: Final = 1e6
"""A request of this many bytes may take a second longer: its way is that of the internet."""
_PIECE: Final = 64 * 2**10
_BEGINS: Final = "http11.send_request_headers.started"
"""What httpcore says when a connection is there and a request begins; also one to a proxy."""
_CLIENTS: Final = "_redis_infra_upstash"
"""The attribute by which an event loop has its clients."""


class UpstashStore(KVStore):
    """A ``KVStore`` over the REST API of Upstash, or of a server that speaks it.

    ``url`` is its ``https://``; ``http://`` on this machine only, because the token goes with every request.
    ``connect_timeout`` seconds for each step of a connection, ``command_timeout`` for sending and the whole
    answer, however it comes, and a second more for each megabyte that is sent. Proxies are those of the
    environment (HTTPS_PROXY), for ``https``.

    Has a circuit of its own: a failed connection opens it, or three answers in a row that did not come. Then
    commands fail at once, but for one now and then that finds out. Opens nothing before the first command.
    Neither copied nor pickled, because of the token.

    Raises:
        SettingsError: the URL is not https, or the token is none.
        MissingExtra: httpx is not installed.
    """

    provider = "upstash"

    def __init__(
        self,
        home: str,
        url: str,
        token: str,
        *,
        connect_timeout: float = 2.0,
        command_timeout: float = 1.0,
        breaker: BreakerPolicy = REST_BREAKER,
        max_reply: int = MAX_REPLY,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(home)
        if importlib.util.find_spec("httpx") is None:
            raise MissingExtra("httpx", "upstash")
        # Hidden first: what fails below shows its variables to who reports errors with them.
        hidden, token = _Token(token), ""
        url, problem = _checked(url)
        if problem := problem or hidden.problem:
            raise SettingsError(problem)
        self._api = _Api(url, hidden, connect_timeout, command_timeout, max_reply)
        self._where = self._api.where
        self.breaker = CircuitBreaker(
            self._where,
            "rest",
            timeouts=breaker.timeouts,
            probe_base=breaker.probe_base,
            probe_cap=breaker.probe_cap,
            clock=clock,
        )

    _where = ""  # until the URL has been read: who reports an error then shows us

    @property
    def where(self) -> str:
        return self._where

    def call(self, command: Command[T]) -> T:
        (reply,) = self._run(rest.one(command))
        return read_reply(command, reply)

    async def acall(self, command: Command[T]) -> T:
        (reply,) = await self._arun(rest.one(command))
        return read_reply(command, reply)

    def execute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        return self._run(rest.several(commands, atomic=atomic))

    async def aexecute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        return await self._arun(rest.several(commands, atomic=atomic))

    def close(self) -> None:
        self._api.close()

    async def aclose(self) -> None:
        await self._api.aclose()

    def after_fork(self) -> None:
        self._api.after_fork()
        self.breaker.after_fork()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a store is not pickled: it has a token; call get_store() where it is needed")

    # Once, or twice where that does no harm

    def _run(self, request: rest.Request) -> list[Any]:
        with self._admitted(request) as attempt:
            attempt.outcome = self._api.send(request)
            if attempt.again():
                attempt.outcome = self._api.send(request)
        return attempt.replies()

    async def _arun(self, request: rest.Request) -> list[Any]:
        with self._admitted(request) as attempt:
            attempt.outcome = await self._api.asend(request)
            if attempt.again():
                attempt.outcome = await self._api.asend(request)
        return attempt.replies()

    @contextmanager
    def _admitted(self, request: rest.Request) -> Iterator[_Attempt]:
        """Let an attempt through the circuit, and tell that what came of it.

        Raises:
            StoreUnavailable: it is open.
        """
        breaker, epoch = self.breaker, self.breaker.epoch
        probes = not breaker.closed and breaker.probe_due() and breaker.begin_probe()
        if not (breaker.closed or probes):
            raise request.unavailable(f"{self.where}: not asked, its circuit is open: {breaker.cause}")
        attempt = _Attempt(request, self.where)
        try:
            yield attempt
        except BaseException:
            if probes:  # whoever was to find out was called off
                breaker.probe_failed(breaker.cause)
                breaker.hurry()
            raise
        _judge(breaker, attempt.outcome, epoch, probes=probes)


@dataclass(frozen=True, slots=True)
class _Failure:
    """What came instead of an answer."""

    kind: Literal["refused", "slow to connect", "busy", "timeout", "lost", "too large"]
    cause: str

    @property
    def sent(self) -> bool:
        return self.kind in ("timeout", "lost", "too large")


class _Attempt:
    """A request on its way, and what became of it."""

    __slots__ = ("_perhaps", "_request", "_where", "outcome")

    def __init__(self, request: rest.Request, where: str) -> None:
        self.outcome: list[Any] | StoreError | _Failure = _Failure("lost", "nothing was heard")
        self._request = request
        self._where = where
        self._perhaps = False
        """Whether an earlier try may have been executed."""

    def again(self) -> bool:
        """Return whether to send it once more, at once: no timeout, and no harm."""
        if not isinstance(self.outcome, _Failure):
            return False
        if self.outcome.kind == "refused":
            return True
        self._perhaps = self.outcome.kind == "lost" and self._request.repeatable
        return self._perhaps

    def replies(self) -> list[Any]:
        """Return the replies.

        Raises:
            StoreError: there are none.
        """
        outcome, request = self.outcome, self._request
        if isinstance(outcome, list):
            return outcome
        if isinstance(outcome, StoreError):
            if self._perhaps and isinstance(outcome, StoreUnavailable | StoreQuotaExceeded | StoreAuthError):
                raise request.unanswered(f"{self._where}: first no answer, then: {outcome.reason}")
            raise outcome
        reason = f"{self._where}: {outcome.cause}"
        if outcome.kind == "too large" and not request.writes:
            raise StoreRejected(request.name, request.key, reason)
        raise (request.unanswered if outcome.sent or self._perhaps else request.unavailable)(reason)


def _judge(
    breaker: CircuitBreaker, outcome: list[Any] | StoreError | _Failure, epoch: int, *, probes: bool
) -> None:
    """Tell a circuit what came of an attempt. Who says no is there; a lack of connections is our own."""
    if not isinstance(outcome, _Failure) or outcome.kind == "too large":
        if probes:
            breaker.close()
        else:
            breaker.record_success()
    elif probes:
        breaker.probe_failed(outcome.cause)
    elif outcome.kind in ("timeout", "lost"):
        breaker.record_timeout(outcome.cause, epoch)
    elif outcome.kind != "busy":
        breaker.trip(outcome.cause, epoch)


class _Api:
    """The API: its address and token, the clients, and what it says that we have seen.

    Failures are returned and not raised: an exception of httpx has the request with it, and in that the
    token. Who reports errors with their causes and variables would have it too.
    """

    __slots__ = (
        "_bare", "_command_timeout", "_connect_timeout", "_held", "_in_loops", "_lock", "_max_reply", "_own",
        "_pid", "_seen", "_token", "_trusted", "_url", "where",
    )  # fmt: skip

    def __init__(
        self, url: str, token: _Token, connect_timeout: float, command_timeout: float, max_reply: int
    ) -> None:
        self._url = url
        parts = urlsplit(url)
        self._token = token
        self._bare = parts.scheme.lower() == "http"
        self._connect_timeout = connect_timeout
        self._command_timeout = command_timeout
        self._max_reply = max_reply
        self.where = f"{parts.scheme.lower()}://{parts.netloc}"
        self._seen = ""
        self._trusted: ssl.SSLContext | None = None
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._own = _Owner()
        self._in_loops: weakref.WeakSet[_LoopHeld] = weakref.WeakSet()

    def send(self, request: rest.Request) -> list[Any] | StoreError | _Failure:
        import httpx

        try:
            with self._client(httpx) as client, _exchange.bounded(self._time_for(request)) as trace:
                sent = self._request(client, request, trace)
                response = client.send(sent, stream=True)
                try:
                    body = bytearray()
                    for part in response.iter_bytes():
                        body += part
                        self._check(body)
                finally:
                    response.close()
        except Exception as error:
            return self._failure(error, httpx)
        return self._understood(request, response, bytes(body))

    async def asend(self, request: rest.Request) -> list[Any] | StoreError | _Failure:
        import httpx

        try:
            # Whoever is called off has his connection closed by httpcore.
            async with self._aclient(httpx) as client, asyncio.timeout(None) as bound:
                sent = self._request(client, request, _rescheduling(bound, self._time_for(request)))
                response = await client.send(sent, stream=True)
                try:
                    body = bytearray()
                    async for part in response.aiter_bytes():
                        body += part
                        self._check(body)
                finally:
                    await response.aclose()
        except Exception as error:
            return self._failure(error, httpx)
        return self._understood(request, response, bytes(body))

    def _request(
        self, client: httpx.Client | httpx.AsyncClient, request: rest.Request, trace: Callable[..., object]
    ) -> httpx.Request:
        url, body = self._url + request.path, request.body
        sent = client.build_request("POST", url, content=body, extensions={"trace": trace})
        with self._lock:
            if self._seen:
                sent.headers[rest.SYNC_TOKEN] = self._seen
        return sent

    def _time_for(self, request: rest.Request) -> float:
        return self._command_timeout + len(request.body) / SLOWEST

    def _check(self, body: bytearray) -> None:
        if len(body) > self._max_reply:
            raise _TooLarge

    def _understood(
        self, request: rest.Request, response: httpx.Response, body: bytes
    ) -> list[Any] | StoreError | _Failure:
        if seen := response.headers.get(rest.SYNC_TOKEN):
            with self._lock:
                self._seen = seen
        if response.status_code != 200:  # there are no values in it, and errors may repeat what they got
            body = body.replace(self._token.text.encode(), b"***")
        try:
            return request.replies(rest.Answer(response.status_code, response.headers, body))
        except StoreError as error:
            return error.with_traceback(None)
        except rest.Unclear as error:
            return _Failure("lost", self._token.hidden_in(str(error)))

    def _failure(self, error: Exception, httpx: Any) -> _Failure:
        """Return what an exception means: whether anything was sent, as httpx proves it."""
        cause = self._token.hidden_in(_root(error))[:200]
        if isinstance(error, httpx.PoolTimeout):
            return _Failure("busy", f"all {MOST} connections were in use")
        if isinstance(error, httpx.ConnectTimeout):
            return _Failure("slow to connect", f"no connection within {self._connect_timeout:.3g} s")
        if isinstance(error, httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol):
            return _Failure("refused", cause)
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            return _Failure("timeout", f"no answer within {self._command_timeout:.3g} s")
        if isinstance(error, _TooLarge):
            return _Failure("too large", f"an answer of more than {self._max_reply} bytes")
        return _Failure("lost", cause)

    # Clients

    @contextmanager
    def _client(self, httpx: Any) -> Iterator[httpx.Client]:
        """Give the client of this process. Closed meanwhile, it ends with the last who uses it."""
        self._is_ours()
        with self._lock:
            if self._held is None:
                self._held = _Held(httpx.Client(**self._options(httpx)))
            held = self._held
            held.users += 1
        try:
            yield held.client
        finally:
            with self._lock:
                held.users -= 1
                last = held.retired and not held.users
            if last:
                held.client.close()

    @asynccontextmanager
    async def _aclient(self, httpx: Any) -> AsyncIterator[httpx.AsyncClient]:
        """Give the client of the running event loop, as :meth:`_client`."""
        self._is_ours()
        loop = asyncio.get_running_loop()
        clients = _clients_of(loop)
        held = clients.get(self._own)
        if held is None or held.client.is_closed:
            held = clients[self._own] = _LoopHeld(httpx.AsyncClient(**self._options(httpx)), loop)
            with self._lock:
                dead = [known for known in self._in_loops if known.loop.is_closed()]
                self._in_loops.add(held)
            for known in dead:
                _clients_of(known.loop).pop(self._own, None)
            await held.end_with_loop()
        held.users += 1
        try:
            yield held.client
        finally:
            held.users -= 1
            if held.retired and not held.users:
                await held.close()

    def _options(self, httpx: Any) -> dict[str, Any]:
        return {
            "headers": rest.headers(self._token.text),
            "timeout": httpx.Timeout(
                connect=self._connect_timeout,
                pool=self._connect_timeout,
                read=self._command_timeout,
                write=self._command_timeout,
            ),
            "limits": httpx.Limits(
                max_connections=MOST, max_keepalive_connections=KEPT, keepalive_expiry=KEPT_FOR
            ),
            "follow_redirects": False,
            # In the clear, and for this machine only: what the environment says of proxies would carry the
            # token away from it.
            "trust_env": not self._bare,
            "verify": self._trust(httpx),
        }

    def _trust(self, httpx: Any) -> ssl.SSLContext:
        """Return who is trusted; read once, since that takes longer than a command. In the clear, nobody."""
        if self._trusted is None:
            import ssl

            bare = self._bare
            self._trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if bare else httpx.create_ssl_context()
        return self._trusted

    def _is_ours(self) -> None:
        if self._pid != os.getpid():
            self.after_fork()

    def close(self) -> None:
        with self._lock:
            held, self._held = self._held, None
            if held is None:
                return
            held.retired = True
            unused = not held.users
        if unused:
            held.client.close()

    async def aclose(self) -> None:
        held = _clients_of(asyncio.get_running_loop()).pop(self._own, None)
        if held is None:
            return
        held.retired = True
        if not held.users:
            await held.close()

    def after_fork(self) -> None:
        # Kept, and never touched: closed here, the parent's event loop would be deaf on them.
        _inherited.append((self._held, self._own, list(self._in_loops)))
        self._start()


_inherited: list[object] = []


class _Owner:
    """What an event loop knows a store's client by; another one after a fork."""


def _clients_of(loop: asyncio.AbstractEventLoop) -> weakref.WeakKeyDictionary[_Owner, _LoopHeld]:
    """Return the clients that an event loop has: its own, since they hold it and would keep it otherwise."""
    clients: weakref.WeakKeyDictionary[_Owner, _LoopHeld] | None = getattr(loop, _CLIENTS, None)
    if clients is None:
        clients = weakref.WeakKeyDictionary()
        setattr(loop, _CLIENTS, clients)
    return clients


def _checked(url: str) -> tuple[str, str]:
    """Return a URL, and what is wrong with it: then it is empty, and in no variable where that is raised."""
    try:
        url = readers.rest_url(url, "UpstashStore: url")
    except SettingsError as error:
        return "", str(error)
    if "@" in urlsplit(url).netloc:
        return "", "UpstashStore: url: the token is in it; pass it as token"
    return url, ""


# How long an exchange may take. httpx has timeouts for single reads, and who answers a byte a second, or
# "just a moment" without end, is within them.


class _Exchange(threading.local):
    """When the exchange of a thread is to be over."""

    ends = math.inf

    @contextmanager
    def bounded(self, seconds: float) -> Iterator[Callable[[str, dict[str, Any]], None]]:
        """Bound what is sent and read in it, from when there is a connection; for httpcore to call."""
        import httpcore

        def trace(event: str, info: dict[str, Any]) -> None:
            if event == _BEGINS:
                self.ends = time.monotonic() + seconds
            elif isinstance(stream := info.get("return_value"), httpcore.NetworkStream):
                self._bind(stream)

        outer, self.ends = self.ends, math.inf  # there is one if a signal handler is what runs here
        try:
            yield trace
        finally:
            self.ends = outer

    def _bind(self, stream: Any) -> None:
        """Let what uses a new stream be over in time."""
        read, write = stream.read, stream.write

        def bounded_read(max_bytes: int, timeout: float | None = None) -> bytes:
            data: bytes = read(max_bytes, timeout=self._left(timeout))
            return data

        def bounded_write(data: bytes, timeout: float | None = None) -> None:
            for begin in range(0, len(data), _PIECE):
                write(data[begin : begin + _PIECE], timeout=self._left(timeout))

        stream.read, stream.write = bounded_read, bounded_write

    def _left(self, timeout: float | None) -> float:
        left = min(self.ends - time.monotonic(), math.inf if timeout is None else timeout)
        if left <= 0:
            raise TimeoutError
        return left


_exchange = _Exchange()


def _rescheduling(bound: asyncio.Timeout, seconds: float) -> Callable[[str, object], Awaitable[None]]:
    """Return what httpcore calls, for a bound to begin when there is a connection."""

    async def trace(event: str, info: object) -> None:
        if event == _BEGINS:
            bound.reschedule(asyncio.get_running_loop().time() + seconds)

    return trace


class _TooLarge(Exception):
    """An answer has more bytes than we take."""


class _Token:
    """A token that no repr shows. Spaces and line ends around it come from copying."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text.strip() if isinstance(text, str) else ""

    @property
    def problem(self) -> str:
        """What is wrong with it; nothing if nothing is."""
        if self.text and all("!" <= character <= "~" for character in self.text):
            return ""
        return (
            "UpstashStore: token: it is empty, no text, or has spaces or signs in it that no token has; "
            "copy it from the console again"
        )

    def hidden_in(self, text: str) -> str:
        return text.replace(self.text, "***")

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token is not pickled")


class _Held:
    """The client of a process, and how many use it: closed under them, it would fail them."""

    __slots__ = ("client", "retired", "users")

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.users = 0
        self.retired = False


class _LoopHeld:
    """The client of an event loop, which alone has it. It ends with that: every way to close a loop ends its
    generators, and one that is dropped takes it along."""

    __slots__ = ("__weakref__", "_end", "client", "loop", "retired", "users")

    def __init__(self, client: httpx.AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self.client = client
        self.loop = loop
        self.users = 0
        self.retired = False
        self._end = self._until_the_end()

    async def end_with_loop(self) -> None:
        await anext(self._end)

    async def close(self) -> None:
        await self._end.aclose()
        await self.client.aclose()

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.client.aclose()


def _root(error: BaseException) -> str:
    """Return what the system said: an event loop knows only that all attempts failed."""
    text = type(error).__name__
    earlier: BaseException | None = error
    while earlier is not None:
        text = str(earlier) or text
        earlier = earlier.__cause__ or earlier.__context__
    return text
