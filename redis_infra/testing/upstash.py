"""A REST server that speaks Upstash's protocol in front of a Redis of your own, and misbehaves on command.

For tests and development without an account. The whole protocol but its streams: commands as JSON and as
paths, ``/pipeline``, ``/multi-exec``, base64, tokens, sync tokens, its statuses. Not modelled, because they
are of Upstash's engine and not of its protocol: quotas, replicas that lag, where its commands differ from
Redis'; nor ``/subscribe``, ``/monitor`` and the format ``resp2``.

Loopback only. Knows nothing of clients, and trusts whoever has a token.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from redis_infra.connection.plainsocket import PlainConnection, ServerError
from redis_infra.testing.server import ExternalServer, RedisServer, plain_connection

__all__ = ["Seen", "UpstashServer"]

Words = list[bytes]

MAX_REQUEST: Final = 64 * 2**20
KEPT: Final = 1000
"""Requests that are remembered as seen."""
UPSTREAM_TIMEOUT: Final = 30.0
"""Seconds for each command of the server behind."""

# They change the connection or wait on it, and connections here are of nobody: Upstash refuses them too.
_UNAVAILABLE: Final = frozenset(
    b"AUTH BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN CLIENT DISCARD EXEC HELLO MONITOR "
    b"MULTI PSUBSCRIBE PSYNC PUNSUBSCRIBE QUIT RESET SELECT SHUTDOWN SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE SYNC "
    b"UNSUBSCRIBE UNWATCH WAIT WAITAOF WATCH".split()
)
_NOT_FOR_READERS: Final = frozenset((b"EVAL", b"EVALSHA", b"FCALL", b"KEYS", b"SCAN", b"SCRIPT"))
_GATEWAY_PAGE: Final = (
    b"<html><head><title>Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def data(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class _Fault:
    """What befalls one request."""

    kind: Literal["lose", "close", "stall", "truncate", "answer"]
    executed: bool = False
    status: int = 200
    body: bytes = b""
    type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    size: int = 0


class UpstashServer:
    """The REST API of a Redis server, on loopback; a context manager.

    ``redis`` is a server or its URL. ``token`` may everything, ``read_only_token`` may read; without one a
    token is made up, and none for readers. It listens from construction until :meth:`stop`, in threads of its
    own, and keeps nothing: give its :attr:`url` and :attr:`token` to a client.

    A fault befalls the next ``count`` requests; faults queue up, and :meth:`heal` ends them. ``seen`` has
    the last ``keep`` requests that came, ``connections`` how many connections did. Methods may be called from
    any thread.
    """

    def __init__(
        self,
        redis: str | RedisServer | ExternalServer,
        *,
        token: str = "",
        read_only_token: str = "",
        port: int = 0,
        keep: int = KEPT,
    ) -> None:
        self.redis_url = redis if isinstance(redis, str) else redis.url
        self.token = token or secrets.token_urlsafe(24)
        self.read_only_token = read_only_token
        self.seen: list[Seen] = []
        self._keep = keep
        self.connections = 0
        self.healed = threading.Event()
        self._faults: deque[_Fault] = deque()
        self._writing: dict[bytes, bool] = {}
        self._answers = 0
        self._lock = threading.Lock()
        self._http = _HttpServer(self, port)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.05,), name="redis_infra-upstash", daemon=True
        )
        self._thread.start()

    # Faults

    def lose_replies(self, count: int = 1) -> None:
        """Execute the next requests, and close the connection in place of the answer."""
        self._add(count, _Fault("lose", executed=True))

    def close_before_reading(self, count: int = 1) -> None:
        """Close the connection of the next requests, which are not executed."""
        self._add(count, _Fault("close"))

    def gateway(self, status: int = 502, count: int = 1, *, executed: bool = False) -> None:
        """Answer the next requests as a gateway does behind which something is wrong: in HTML."""
        page = _Fault("answer", executed, status, _GATEWAY_PAGE, "text/html")
        self._add(count, page)

    def limit_rate(self, count: int = 1, *, retry_after: int | None = None) -> None:
        """Refuse the next requests because there are too many."""
        headers = () if retry_after is None else (("Retry-After", str(retry_after)),)
        body = _error("Too Many Requests")
        self._add(count, _Fault("answer", False, 429, body, headers=headers))

    def answer_error(self, text: str, count: int = 1, *, status: int = 400) -> None:
        """Refuse the next requests with ``text``: a quota's, for example."""
        self._add(count, _Fault("answer", False, status, _error(text)))

    def answer(self, status: int, body: bytes, count: int = 1, *, headers: Mapping[str, str] = {}) -> None:
        """Answer the next requests with anything, and do not execute them."""
        self._add(count, _Fault("answer", False, status, body, headers=tuple(headers.items())))

    def stall(self, count: int = 1, *, executed: bool = False) -> None:
        """Take the next requests, and answer nothing until :meth:`heal`."""
        self._add(count, _Fault("stall", executed))

    def truncate(self, size: int = 5, count: int = 1) -> None:
        """Execute the next requests, send ``size`` bytes of the answer's body, and close the connection."""
        self._add(count, _Fault("truncate", executed=True, size=size))

    def heal(self) -> None:
        """Do as one should from now on; what was stalled is let go unanswered."""
        with self._lock:
            self._faults.clear()
            self.healed.set()

    def _add(self, count: int, fault: _Fault) -> None:
        with self._lock:
            if self.healed.is_set():
                self.healed = threading.Event()
            self._faults.extend([fault] * count)

    def fault(self) -> _Fault | None:
        """Return what befalls the request that is here; for the threads that answer."""
        with self._lock:
            return self._faults.popleft() if self._faults else None

    # Life

    def drop_connections(self) -> None:
        """Close every connection, as a gateway does with those that were idle for long."""
        self._http.hang_up()

    def stop(self) -> None:
        """Stop listening and close every connection; again is harmless."""
        self.heal()
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<UpstashServer {self.url}>"

    # For the threads that answer

    def note(self, seen: Seen) -> None:
        with self._lock:
            self.seen.append(seen)
            del self.seen[: max(0, len(self.seen) - self._keep)]

    def sync_token(self) -> str:
        with self._lock:
            self._answers += 1
            return f"{self._answers}"

    def refuses(self, words: Words, token: str, connection: PlainConnection) -> str:
        """Return why whoever has ``token`` may not have this executed; nothing if he may."""
        name = words[0].upper()
        shown = name.decode(errors="replace").lower()
        if name in _UNAVAILABLE:
            return f"ERR Command is not available: '{shown}'"
        if token == self.token or not (name in _NOT_FOR_READERS or self._writes(name, connection)):
            return ""
        return f"NOPERM this user has no permissions to run the '{shown}' command"

    def _writes(self, name: bytes, connection: PlainConnection) -> bool:
        if name not in self._writing:
            (about,) = connection.call("COMMAND", "INFO", name)
            self._writing[name] = about is not None and "write" in about[2]
        return self._writing[name]


class _HttpServer(ThreadingHTTPServer):
    """Threads for connections, which end when it does."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, rest: UpstashServer, port: int) -> None:
        self.rest = rest
        self._open: dict[socket.socket, threading.Thread | None] = {}
        self._watch = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._watch:
            self.rest.connections += 1
            self._open[request] = None  # before its thread is there: who stops now has to know of it
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._watch:
            self._open[request] = threading.current_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._watch:
                self._open.pop(request, None)

    def hang_up(self) -> None:
        with self._watch:
            for request in self._open:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def server_close(self) -> None:
        super().server_close()
        self.hang_up()
        with self._watch:
            threads = list(self._open.values())
        for thread in threads:
            if thread is not None:
                thread.join(UPSTREAM_TIMEOUT)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class _Refused(Exception):
    """The request is none of this protocol."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client, and one to Redis."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HttpServer

    def setup(self) -> None:
        super().setup()
        self._upstream: PlainConnection | None = None

    def finish(self) -> None:
        self._forget_upstream()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Write nothing: a path may have a token in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # every method there is, and those that somebody makes up
            return self._handle
        raise AttributeError(name)

    def _handle(self) -> None:
        rest, fault = self.server.rest, self.server.rest.fault()
        if fault is not None and fault.kind == "close":
            self._hang_up()
            return
        try:
            body = self._body()
        except _Refused as refused:
            self._send(refused.status, _error(refused.text))
            self._hang_up()
            return
        headers = dict(self.headers.items())
        rest.note(Seen(method=self.command, path=self.path, headers=headers, body=body))
        status, answer = 200, b""
        if fault is None or fault.executed:
            status, answer = self._answer(body)
        if fault is None:
            self._send(status, answer)
        else:
            self._misbehave(fault, status, answer)

    def _misbehave(self, fault: _Fault, status: int, answer: bytes) -> None:
        if fault.kind == "answer":
            self._send(fault.status, fault.body, fault.type, fault.headers)
            return
        if fault.kind == "truncate":
            self._send(status, answer, cut=fault.size)
        elif fault.kind == "stall":
            self.server.rest.healed.wait()
        self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes:
        if "Transfer-Encoding" in self.headers:
            raise _Refused(411, "ERR a request needs a Content-Length")
        said = self.headers.get("Content-Length", "0").strip()
        if not re.fullmatch("[0-9]{1,18}", said):
            raise _Refused(400, "ERR the Content-Length is no number of bytes")
        size = int(said)
        if size > MAX_REQUEST:
            text = f"ERR max request size exceeded. Limit: {MAX_REQUEST} bytes, Actual: {size} bytes"
            raise _Refused(413, text)
        return self.rfile.read(size)

    def _send(
        self,
        status: int,
        body: bytes,
        type: str = "application/json",  # noqa: A002
        headers: Sequence[tuple[str, str]] = (),
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Upstash-Sync-Token", self.server.rest.sync_token())
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])

    # The protocol

    def _answer(self, body: bytes) -> tuple[int, bytes]:
        """Execute what a request asks for; return a status and a body."""
        try:
            return self._executed(body)
        except _Refused as refused:
            return refused.status, _error(refused.text)
        except OSError:
            self._forget_upstream()
            return 503, _error("ERR the database does not answer")

    def _executed(self, body: bytes) -> tuple[int, bytes]:
        if self.command not in ("GET", "HEAD", "POST", "PUT"):
            raise _Refused(405, f"Method Not Allowed: {self.command}")
        parts = urlsplit(self.path)
        query = parse_qsl(parts.query, keep_blank_values=True, encoding="utf-8", errors="surrogateescape")
        token = self._token(query)
        segments = [_percent_decoded(each) for each in parts.path.removeprefix("/").split("/")]
        if segments in ([b"pipeline"], [b"multi-exec"]):
            many = [_words_of(each) for each in _array_of(body)]
            if not many:
                raise _Refused(400, "ERR empty pipeline request")
            if segments == [b"pipeline"]:
                return 200, _json([self._execute(words, token) for words in many])
            return self._transaction(many, token)
        words = _words_of(_array_of(body)) if segments == [b""] else _path_words(segments, body, query)
        reply = self._execute(words, token)
        return 400 if "error" in reply else 200, _json(reply)

    def _token(self, query: Sequence[tuple[str, str]]) -> str:
        """Return the token that leads here.

        Raises:
            _Refused: there is none, or another one.
        """
        rest = self.server.rest
        scheme, _, said = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            said = dict(query).get("_token", "")
        for known in (rest.token, rest.read_only_token):
            if known and secrets.compare_digest(said.encode(errors="replace"), known.encode()):
                return known
        raise _Refused(401, "WRONGPASS invalid or missing auth token")

    def _execute(self, words: Words, token: str) -> dict[str, Any]:
        connection = self._connection()
        if why := self.server.rest.refuses(words, token, connection):
            return {"error": why}
        try:
            return self._result(connection.call(*words))
        except ServerError as error:
            return {"error": str(error)}

    def _transaction(self, many: list[Words], token: str) -> tuple[int, bytes]:
        connection = self._connection()
        for words in many:
            if why := self.server.rest.refuses(words, token, connection):
                return 400, _error(why)
        connection.call("MULTI")
        for words in many:
            with contextlib.suppress(ServerError):  # EXEC says it again, of all
                connection.call(*words)
        try:
            replies = connection.call("EXEC")
        except ServerError as error:
            return 400, _error(str(error))
        return 200, _json([self._result(reply) for reply in replies])

    def _result(self, reply: Any) -> dict[str, Any]:
        if isinstance(reply, ServerError):
            return {"error": str(reply)}
        encoded = self.headers.get("Upstash-Encoding", "").lower() == "base64"
        return {"result": _shown(reply, encoded=encoded)}

    def _connection(self) -> PlainConnection:
        if self._upstream is None:
            self._upstream = plain_connection(self.server.rest.redis_url, timeout=UPSTREAM_TIMEOUT)
        return self._upstream

    def _forget_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.close()


def _shown(reply: Any, *, encoded: bool) -> Any:
    """Return a reply as JSON has it. The status OK is said as it is."""
    if isinstance(reply, list):
        return [_shown(each, encoded=encoded) for each in reply]
    if isinstance(reply, ServerError):
        return str(reply)
    if reply is None or isinstance(reply, int) or reply == "OK":
        return reply
    data = reply.encode() if isinstance(reply, str) else reply
    return base64.b64encode(data).decode() if encoded else data.decode(errors="replace")


def _array_of(body: bytes) -> list[Any]:
    try:
        # Numbers as they are written: who reads them as floats changes them.
        read = json.loads(body, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, list):
        raise _Refused(400, "ERR failed to parse command")
    return read


def _words_of(array: Any) -> Words:
    if not isinstance(array, list):
        raise _Refused(400, "ERR failed to parse pipeline request")
    if not array or not all(isinstance(each, str | bool) for each in array):
        raise _Refused(400, "ERR failed to parse command" if array else "ERR empty command")
    return [
        (str(each).lower() if isinstance(each, bool) else each).encode(errors="surrogatepass")
        for each in array
    ]


def _path_words(segments: Sequence[bytes], body: bytes, query: Sequence[tuple[str, str]]) -> Words:
    """Return ``/set/key?EX=100`` with its body as words: path, body, query."""
    return [*segments, *([body] if body else []), *_query_words(query)]


def _query_words(query: Sequence[tuple[str, str]]) -> Iterator[bytes]:
    for name, value in query:
        if name != "_token":
            yield name.encode(errors="surrogateescape")
            if value:
                yield value.encode(errors="surrogateescape")


def _percent_decoded(segment: str) -> bytes:
    return unquote(segment, errors="surrogateescape").encode(errors="surrogateescape")


def _error(text: str) -> bytes:
    return _json({"error": text})


def _json(data: Any) -> bytes:
    return json.dumps(data).encode()
